"""Objectives of distillation by name."""

from functools import partial
from typing import Protocol

from liteframe.distill.losses import LossName
from liteframe.distill.objectives.base import ClipLosses, Objective
from liteframe.distill.objectives.ctd import CompressedTokens
from liteframe.distill.objectives.rtd import ReconstructedFeatures
from liteframe.distill.targets import TargetSettings
from liteframe.reduce.base import Window


class _Maker(Protocol):
    def __call__(
        self, channels: int, settings: TargetSettings, loss_name: LossName, window: Window = (4, 2, 2)
    ) -> CompressedTokens: ...


__all__ = ["ClipLosses", "CompressedTokens", "Objective", "ReconstructedFeatures", "objectives"]

objectives: dict[str, _Maker] = {
    "ctd": CompressedTokens,
    "rtd": ReconstructedFeatures,
    "rtd_linear": partial(ReconstructedFeatures, decoder="linear"),
    "rtd_repeat": partial(ReconstructedFeatures, decoder="repeat"),
}
