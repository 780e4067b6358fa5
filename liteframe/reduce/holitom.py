"""HoliTom (arXiv 2505.21334; reducers_ablations.md 3.8), its part before the language model: tokens that stand still.

Shapes: F frames of n tokens, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import cosine, density_peaks, group_sums, top


@dataclass(frozen=True)
class HoliTom(Reducer):
    """Windows of frames in which most tokens stand still: those once, merged; of the others the most salient.

    In the order of windows: what stands still, filed under the first frame, then frame by frame what does not.

    Attributes:
        threshold: cosine above which a token stands still from one frame to the next, tau; its authors take 0.8, and
            0.65 at a ratio of 0.1.
        own_weight: of a center against the mean of what joins it, beta.
        longest: frames of a window at most.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    threshold: float = 0.8
    own_weight: float = 0.6
    longest: int = 1024

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """About `budget` tokens: counts are rounded up in each frame."""
        windows, saved = still_windows(signals.tokens, self.threshold, self.longest)
        ratio = min(Fraction(1), Fraction(budget, signals.count - saved))
        parts = [part for window in windows for part in self._of_window(signals, window, ratio)]
        return Tokens.by_frame(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _of_window(
        self, signals: Signals, window: range, ratio: Fraction
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens, frames, places and sizes, part by part."""
        assert signals.saliency is not None
        x = signals.tokens[window.start : window.stop]  # [L,n,C]
        still = (
            _still(x, self.threshold).all(0) if len(x) > 1 else torch.zeros_like(x[0, :, 0], dtype=torch.bool)
        )  # [n]
        places = still.nonzero().flatten()
        if count := round(len(places) * ratio):  # half to even
            means = x[:, places].mean(0)  # [ns,C]
            clusters = density_peaks(means, count, min(7, count))
            own, joins = means[clusters.centers], torch.ones_like(clusters.label, dtype=torch.bool)
            joins[clusters.centers] = False
            joined = clusters.sizes[:, None] - 1  # [m,1]
            others = group_sums(means[joins], clusters.label[joins], count) / joined.clamp_min(1)
            merged = torch.where(joined > 0, self.own_weight * own + (1 - self.own_weight) * others, own)
            raster = clusters.centers.argsort()
            frame = torch.full_like(raster, window.start)
            yield merged[raster], frame, places[clusters.centers[raster]], (clusters.sizes[raster] * len(x)).to(x)
        moving = (~still).nonzero().flatten()
        count = -(-len(moving) * ratio.numerator // ratio.denominator)
        for t in range(len(x)):
            saliency = signals.saliency[window.start + t, moving]
            chosen = moving[top(saliency, count).sort().values]
            yield x[t, chosen], torch.full_like(chosen, window.start + t), chosen, torch.ones_like(x[t, chosen, 0])


def still_windows(x: Tensor, threshold: float, longest: int = 1024) -> tuple[list[range], int]:
    """Cut a video [F,n,C] into windows that save the most tokens, by dynamic programming.

    A window of L frames saves L - 1 times the tokens whose cosine from frame to frame stays above the threshold.

    Returns:
        The frames of each window in order, and how many tokens they save in all.
    """
    still = _still(x, threshold).cpu()  # [F-1,n], from a frame to the next
    saved, start = [0], [0]  # by the last frame: what is saved up to it, and where its window starts
    for end in range(1, len(x)):
        first = max(0, end + 1 - longest)
        all_along = (
            still[first:end].int().flip(0).cummin(0).values.flip(0).sum(1).tolist()
        )  # from each start to the end
        best, begin = saved[-1], end
        for s in range(end - 1, first - 1, -1):
            total = (saved[s - 1] if s else 0) + (end - s) * all_along[s - first]
            if total > best:
                best, begin = total, s
        saved.append(best)
        start.append(begin)
    windows, stop = list[range](), len(x)
    while stop:
        windows.append(range(start[stop - 1], stop))
        stop = windows[-1].start
    return windows[::-1], saved[-1]


def _still(x: Tensor, threshold: float) -> Tensor:
    """Bool [F-1,n]."""
    return cosine(x[:-1], x[1:]) > threshold
