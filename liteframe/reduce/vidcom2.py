"""VidCom2: frames and tokens that stand out of the video (EMNLP 2025, arXiv 2505.14454; reducers_ablations.md 3.10).

Shapes: F frames, n tokens a frame, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import bottom, unit

BANDWIDTHS = tuple(2.0**e for e in range(-3, 2))  # of the Gaussians, squared
TEMPERATURE = 0.01


@dataclass(frozen=True)
class VidCom2(Reducer):
    """Of each frame the tokens least like the means, untouched and in raster order; unusual frames keep more."""

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """The budget up to rounding in each frame, at least one token a frame."""
        frames, n, _ = signals.tokens.shape
        to_video, to_frame = typicality(signals.tokens)  # [F,n] each
        share = (-to_video.mean(1) / TEMPERATURE).softmax(0)  # [F]
        scale = (budget / signals.count * (1 + share - 1 / frames)).clamp_max(1)
        counts = (scale * n).round().long().clamp_min(1)
        rank = bottom(to_video + to_frame, n).argsort(1)  # [F,n]
        return Tokens.kept(signals, rank < counts[:, None])


def typicality(x: Tensor) -> tuple[Tensor, Tensor]:
    """How near tokens are to the mean of the video and to that of their frame: [F,n,C] -> [F,n] each, at most 5.

    Only the steadier half of the channels counts; the means are those of unit vectors, and no unit vectors themselves.
    """
    steady = bottom(x.flatten(0, 1).var(0, correction=0), max(1, x.shape[-1] // 2))
    y = unit(x[..., steady])  # [F,n,C/2]
    of_frame = y.mean(1, keepdim=True)  # [F,1,C/2]
    return _nearness(y, of_frame.mean(0)), _nearness(y, of_frame)


def _nearness(y: Tensor, center: Tensor) -> Tensor:
    products = (y @ center.mT)[..., 0]  # [F,n]
    distance = y.square().sum(-1) - 2 * products + center.square().sum(-1)
    return torch.stack([(-distance / (2 * width)).exp() for width in BANDWIDTHS]).sum(0)
