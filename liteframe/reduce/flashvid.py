"""FlashVID (arXiv 2602.08024; reducers_ablations.md 3.9), its part before the language model: trees over time.

Shapes: F frames of n tokens, L frames of a segment, C channels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import density_peaks, first_largest, group_sums, segments, unit


@dataclass(frozen=True)
class FlashVID(Reducer):
    """Salient and diverse tokens of each frame untouched; the others join the most similar one of the frame before.

    In raster order. What the released code gets wrong is put right: it divides a branch's sum by the number of direct
    children, clusters selected tokens of one-frame segments again, and may select a token twice.

    Attributes:
        selected: share of a frame's budget that is selected, alpha.
        threshold: cosine above which a token joins one of the frame before, tau_t.
        min_segments: segments that a video has at least, c.
        segment_threshold: cosine of neighboring mean tokens below which a segment ends, tau.
        selection: "attn_div" weighs distances by saliency, "attn_div_v2" also by the product with the mean tokens.
        expansion: what the budget is multiplied by; its authors take 1.25 with a second stage in the language model.
        released_counts: divide a branch's sum as the released code does.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})
    selected: float = 0.7
    threshold: float = 0.8
    min_segments: int = 8
    segment_threshold: float = 0.9
    selection: Literal["attn_div", "attn_div_v2"] = "attn_div_v2"
    expansion: float = 1.0
    released_counts: bool = False

    def segments(self, signals: Signals) -> list[range]:
        """The frames of each segment; one a frame, or `min_segments` for every video, mean that tau says nothing."""
        return segments(signals.tokens.mean(1), self.min_segments, self.segment_threshold)

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """Up to a token a frame above the budget: counts are rounded up in each."""
        if self.selection not in ("attn_div", "attn_div_v2"):
            raise ValueError(f'selection is "attn_div" or "attn_div_v2", got {self.selection!r}')
        frames, n, _ = signals.tokens.shape
        per_frame = min(n, math.ceil(budget * self.expansion / frames - 1e-9))
        selected = math.ceil(per_frame * self.selected - 1e-9)
        parts = [p for s in self.segments(signals) for p in self._of_segment(signals, s, selected, per_frame)]
        tokens, frame, place, size = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return Tokens.by_frame(tokens, frame, place, size).in_raster_order()

    def _of_segment(
        self, signals: Signals, segment: range, selected: int, per_frame: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens, frames, places and sizes of the selected, then of what is left of the others frame by frame."""
        assert signals.saliency is not None
        x = signals.tokens[segment.start : segment.stop]  # [L,n,C]
        weight = signals.saliency[segment.start : segment.stop]  # [L,n]
        if self.selection == "attn_div_v2":
            weight = weight * (x @ x.mean(1).T).mean(2)  # may be negative
        is_selected = torch.zeros_like(weight, dtype=torch.bool).scatter(1, diverse(x, weight, selected), True)
        frame, place = is_selected.nonzero(as_tuple=True)
        yield x[frame, place], frame + segment.start, place, torch.ones_like(weight[frame, place])

        stays, merged, sizes = self._merge_over_time(x, is_selected, per_frame * len(x))
        left = int(stays.sum())
        merged_budget = (per_frame - selected) * len(x)
        for t in range(len(x)):
            places = stays[t].nonzero().flatten()
            tokens, size = merged[t, places], sizes[t, places]
            if merged_budget < left:
                count = -(-len(places) * merged_budget // left)
                if not count:
                    continue
                clusters = density_peaks(tokens, count, min(7, count))
                places = places[clusters.centers]
                tokens, size = clusters.means(tokens), group_sums(size[:, None], clusters.label, count)[:, 0]
            yield tokens, torch.full_like(places, segment.start + t), places, size

    def _merge_over_time(self, x: Tensor, is_selected: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens stay, bool [L,n], their values with what joined them, [L,n,C], and how many those are, [L,n]."""
        frames, n, _ = x.shape
        stays, sums, sizes = ~is_selected, x.clone(), torch.ones_like(x[..., 0])
        if frames == 1:
            return stays, sums, sizes
        directions = unit(x)
        likeness = directions[1:] @ directions[:-1].mT  # [L-1,n,n], to the tokens of the frame before
        likeness = likeness.masked_fill(is_selected[1:, :, None] | is_selected[:-1, None, :], -1)
        parent, best = first_largest(likeness), likeness.amax(2)  # [L-1,n]
        threshold = self.threshold
        most = frames * n - budget  # that may join
        if int((best > threshold).sum()) > most:
            threshold = float(best.flatten().sort(descending=True).values[most - 1]) if most else math.inf
        joins = best > threshold
        divisor = sizes.clone()
        for t in range(frames - 1, 0, -1):
            joining, target = joins[t - 1], parent[t - 1][joins[t - 1]]
            sums[t - 1] += group_sums(sums[t][joining], target, n)
            sizes[t - 1] += group_sums(sizes[t][joining, None], target, n)[:, 0]
            if self.released_counts:
                divisor[t - 1] += target.bincount(minlength=n)
        stays[1:] &= ~joins
        return stays, sums / (divisor if self.released_counts else sizes)[..., None], sizes


def diverse(x: Tensor, weight: Tensor, count: int) -> Tensor:
    """Tokens far from each other in each frame, distances to token j weighed by weight j.

    Args:
        x: [F,n,C].
        weight: [F,n].
        count: how many of each frame.

    Returns:
        int64 [F,count], in the order of choice.
    """
    directions = unit(x)
    distance = (1 - directions @ directions.mT) * weight[:, None, :]  # [F,n,n]
    frames = torch.arange(len(x), device=x.device)
    to_kept = distance.sort(1).values[:, min(1, x.shape[1] - 1)]  # [F,n], at first to the second nearest of all
    chosen = list[Tensor]()
    for _ in range(count):
        new = first_largest(to_kept)  # [F]
        row = distance[frames, new]
        to_kept = row if not chosen else torch.minimum(to_kept, row)
        chosen.append(new)
        to_kept = to_kept.scatter(1, torch.stack(chosen, 1), -math.inf)
    return torch.stack(chosen, 1) if chosen else torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
