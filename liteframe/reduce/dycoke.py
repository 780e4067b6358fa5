"""DyCoke, stage 1: what repeats an earlier frame is dropped (CVPR 2025, arXiv 2411.15024; reducers_ablations.md 3.6).

Its second stage picks tokens while an answer is written, which saves no prefill, and is left out. Shapes: F frames,
n tokens a frame, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import bottom, cosine


@dataclass(frozen=True)
class DyCoke(Reducer):
    """Every g-th frame whole; of the frames between, the tokens least like an earlier frame's, the least first.

    Args:
        group: g, a power of two. Frame j of a group is compared with its frame j & (j - 1): for the authors' 4, frames
            1 and 2 with 0, and 3 with 2.
        pool: side of the windows that tokens are averaged in before that; ours, without it 1/g is the most it can do.
        released: as in the authors' code, where frame 2 of the last group stays whole and an odd last frame is lost.
    """

    group: int = 4
    pool: int = 1
    released: bool = False

    def __post_init__(self) -> None:
        """Refuse groups that the rule does not cover."""
        if self.group < 2 or self.group & (self.group - 1) or self.pool < 1 or (self.released and self.group != 4):
            raise ValueError(
                "group is a power of two, 4 where released, and pool at least 1; "
                f"got group={self.group}, pool={self.pool}, released={self.released}"
            )

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """The budget up to rounding in each frame.

        Raises:
            ValueError: it is less than the frames that stay whole.
        """
        x, places, sizes = pooled(signals.features, self.pool)  # [F,n,C], [n], [n]
        n, last = x.shape[1], len(x) - int(self.released and len(x) > 1 and len(x) % 2)
        pruned = [frame for frame in range(last) if not self._whole(frame, len(x))]
        whole = (last - len(pruned)) * n
        if budget < whole:
            raise ValueError(
                f"DyCoke leaves {last - len(pruned)} frames whole, {whole} tokens, more than the budget of {budget}"
            )
        keep = round((budget - whole) / max(1, len(pruned)))
        chosen = [torch.arange(n, device=x.device)] * last
        for frame in pruned if keep < n else ():
            j = frame % self.group
            chosen[frame] = bottom(cosine(x[frame], x[frame - j + (j & (j - 1))]), keep)
        index = torch.cat(chosen)
        counts = torch.tensor([len(kept) for kept in chosen], device=x.device)
        filed = torch.arange(last, device=x.device).repeat_interleave(counts)
        return Tokens.by_frame(x[filed, index], filed, places[index], sizes[index])

    def _whole(self, frame: int, frames: int) -> bool:
        return frame % self.group == 0 or (self.released and frame % 4 == 2 and frame + 2 >= frames)


def pooled(features: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means of windows of side x side tokens, the last ones of rows and columns smaller where need be.

    Args:
        features: [F,h,w,C].
        side: 1 changes nothing.

    Returns:
        [F,n,C], and int64 [n]: the place of each window's center in the grid before, and how many tokens it has.
    """
    h, w = features.shape[1:3]
    index = torch.arange(h * w, device=features.device).view(h, w)
    if side == 1:
        return features.flatten(1, 2), index.flatten(), torch.ones_like(index).flatten()
    means = F.avg_pool2d(features.permute(0, 3, 1, 2), side, ceil_mode=True).permute(0, 2, 3, 1)
    row, column = (torch.arange(0, length, side, device=index.device) for length in (h, w))
    high, wide = (h - row).clamp_max(side), (w - column).clamp_max(side)
    center = index[row + (high - 1) // 2][:, column + (wide - 1) // 2]
    return means.flatten(1, 2), center.flatten(), (high[:, None] * wide).flatten()
