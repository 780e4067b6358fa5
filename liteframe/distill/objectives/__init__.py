"""Objectives of distillation by name."""

from functools import partial
from typing import Protocol

from liteframe.distill.losses import LossName
from liteframe.distill.objectives.base import ClipLosses, Objective
from liteframe.distill.objectives.ctd import CompressedTokens
from liteframe.distill.objectives.elastic import ElasticTokens
from liteframe.distill.objectives.rtd import ReconstructedFeatures
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.reduce.base import Window


class _Maker(Protocol):
    def __call__(
        self, channels: int, settings: TargetSettings, loss_name: LossName, window: Window = (4, 2, 2)
    ) -> CompressedTokens: ...


__all__ = [
    "ClipLosses", "CompressedTokens", "ElasticTokens", "Objective", "ReconstructedFeatures", "make_objective",
    "objectives",
]  # fmt: skip

objectives: dict[str, _Maker] = {
    "ctd": CompressedTokens,
    "rtd": ReconstructedFeatures,
    "rtd_linear": partial(ReconstructedFeatures, decoder="linear"),
    "rtd_repeat": partial(ReconstructedFeatures, decoder="repeat"),
}


def make_objective(
    name: str, channels: int, settings: TargetSettings, loss_name: LossName, student: LiteFrameConfig
) -> CompressedTokens:
    """The objective of this name for a student of one compression or of several.

    Args:
        name: in the table.
        channels: C, of the teacher.
        settings: how targets are clipped and standardized.
        loss_name: between a token and its target.
        student: its shape.

    Raises:
        ValueError: there is no such objective, or it knows no elastic student.
    """
    if name not in objectives:
        raise ValueError(f"model.objective is {name!r}; choose one of {', '.join(objectives)}")
    if student.deepstack and name != "ctd":
        raise ValueError(f"model.objective is {name!r}, which knows no deepstack: take ctd, or a teacher without")
    if student.modes and name != "ctd":
        raise ValueError(
            f"model.objective is {name!r}, which knows one compression, and model.student.modes names "
            f"{', '.join(student.modes)}: leave the modes out, or take the objective ctd"
        )
    if student.modes:
        objective: CompressedTokens = ElasticTokens(
            channels, settings, loss_name, student.windows, student.default_mode
        )
    else:
        objective = objectives[name](channels, settings, loss_name, student.compression)
    objective.parts = 1 + student.deepstack
    return objective
