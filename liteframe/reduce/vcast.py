"""V-CAST: more tokens where the frames' path bends (arXiv 2603.27650; reducers_ablations.md 3.11).

Shapes: F frames, n tokens a frame, C channels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import top, unit

TEMPERATURE = 0.7
EPS = 1e-6


@dataclass(frozen=True)
class VCast(Reducer):
    """Of each frame the tokens unlike its mean, and the longest; untouched and in raster order."""

    exact: ClassVar[bool] = True

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """As many tokens as the budget says, but never fewer than there are frames."""
        x = signals.tokens  # [F,n,C]
        frames, n, _ = x.shape
        mean = unit(x.mean(1))  # [F,C]
        weights = (curvature(mean).double() / TEMPERATURE).softmax(0)
        counts = torch.tensor(share_out(weights.tolist(), max(budget, frames), n), device=x.device)  # [F]
        length = x.norm(dim=-1)  # [F,n]
        low, high = length.amin(1, keepdim=True), length.amax(1, keepdim=True)
        likeness = (x @ mean[..., None])[..., 0] / (
            length.clamp_min(EPS) * mean.norm(dim=-1, keepdim=True).clamp_min(EPS)
        )
        score = 1 - likeness + (length - low) / (high - low + EPS)
        rank = top(score, n).argsort(1)  # [F,n]
        return Tokens.kept(signals, rank < counts[:, None])


def curvature(path: Tensor) -> Tensor:
    """How far the path of frames [F,C] turns at each: 1 - cosine of the steps to it and from it, 1 at its ends; [F]."""
    step = path.diff(dim=0)  # [F-1,C]
    bend = 1 - F.cosine_similarity(step[:-1], step[1:], dim=-1, eps=EPS)
    return F.pad(bend, (1, 1), value=1.0)[: len(path)]


def share_out(weights: list[float], total: int, most: int) -> list[int]:
    """Whole numbers from 1 to `most` that sum to `total`, by weights that sum to 1.

    What is left after rounding down goes where the fraction is largest (the first of equals) until that is full, then
    on to the next.
    """
    parts = [round(weight * (total - len(weights)), 6) for weight in weights]  # else 3 of 9 may be 2.9999999999999996
    counts = [min(most, 1 + math.floor(part)) for part in parts]
    for i in sorted(range(len(parts)), key=lambda i: math.floor(parts[i]) - parts[i]):
        counts[i] = min(most, counts[i] + total - sum(counts))
    return counts
