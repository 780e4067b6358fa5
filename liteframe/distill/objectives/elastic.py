"""CTD of an elastic student: each mode against the WAP targets of its own windows, all of them in each step.

The teacher is pooled once, over windows that those of all modes are made of, and theirs follow exactly (see coarser).
Clipping and standardization are those of the student's own compression for all modes, so that one head serves all.

Shapes: B clips, T' slots, (h,w) pooled grid, C teacher channels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.distill.losses import LossName
from liteframe.distill.objectives.base import ClipLosses
from liteframe.distill.objectives.ctd import CompressedTokens
from liteframe.distill.targets import Target, TargetSettings
from liteframe.models.student.elastic import all_modes
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.reduce.base import Window
from liteframe.reduce.pooled_teacher import Pooled, coarser, factor_between


class ElasticTokens(CompressedTokens):
    """The objective of CTD for several compressions: the mean of their losses.

    Args:
        channels: C.
        settings: how targets are clipped and standardized.
        loss_name: between a token and its target.
        windows: (t,kh,kw) of each mode.
        own: the mode that is meant where none is named.
    """

    needs_log_weights = True

    def __init__(
        self, channels: int, settings: TargetSettings, loss_name: LossName, windows: Mapping[str, Window], own: str
    ):
        t, h, w = (math.gcd(*sides) for sides in zip(*windows.values(), strict=True))
        super().__init__(channels, settings, loss_name, (t, h, w))
        self.windows, self.own_mode = dict(windows), own
        self.figure_names: Sequence[str] = ("cosine", *(f"cosine_{mode}" for mode in windows if mode != own))

    @property
    @override
    def statistics_window(self) -> Window:
        return self.windows[self.own_mode]

    @override
    def student_tokens(self, student: LiteFrameEncoder, video: Tensor) -> Any:
        """[B,T,3,H,W] -> [B,T',h,w,C] of each mode."""
        return all_modes(student, video)

    @override
    def targets(self, features: Tensor, mask: Tensor, log_weights: Tensor | None = None) -> Any:
        """Targets by mode."""
        pooled = Pooled(features, mask, None, log_weights)
        coarse = {mode: self._of_mode(pooled, mode) for mode in self.windows}
        return {mode: super(ElasticTokens, self).targets(own.tokens, own.slots) for mode, own in coarse.items()}

    @override
    def loss(self, tokens: Any, target: Any) -> ClipLosses:
        losses = [super(ElasticTokens, self).loss(tokens[mode], target[mode]) for mode in self.windows]
        per_clip, clipped = (torch.stack(parts).mean(0) for parts in zip(*losses, strict=True))
        return ClipLosses(per_clip, clipped)

    @override
    def figures(self, tokens: Any, target: dict[str, Target]) -> dict[str, Tensor]:
        found = {mode: super(ElasticTokens, self).figures(tokens[mode], target[mode]) for mode in self.windows}
        return {self._named("cosine", mode): figures["cosine"] for mode, figures in found.items()}

    @override
    def idle(self, tokens: Any) -> Tensor:
        return torch.stack([super(ElasticTokens, self).idle(tokens[mode]) for mode in self.windows]).sum()

    @override
    def own(self, pooled: Pooled) -> Pooled:
        """Features in the student's own compression."""
        return self._of_mode(pooled, self.own_mode)

    @override
    def main(self, tokens: Any) -> Tensor:
        return tokens if isinstance(tokens, Tensor) else tokens[self.own_mode]

    @override
    def compared(self, tokens: Any, pooled: Pooled) -> dict[str, tuple[Tensor, Pooled]]:
        return {self._named("", mode): (self.raw(tokens[mode]), self._of_mode(pooled, mode)) for mode in self.windows}

    def _of_mode(self, pooled: Pooled, mode: str) -> Pooled:
        return coarser(pooled, factor_between(self.pooling, self.windows[mode]))

    def _named(self, name: str, mode: str) -> str:
        return name if mode == self.own_mode else f"{name}_{mode}"
