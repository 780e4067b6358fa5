"""FastVID (arXiv 2503.11187; reducers_ablations.md 3.4): salient tokens, and density peaks of some anchor frames.

Shapes: F frames of n tokens, L frames and P unsalient tokens of a segment, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import density_peaks, first_largest, group_sums, segments, top, unit


@dataclass(frozen=True)
class FastVID(Reducer):
    """In raster order. Every anchor frame merges the whole of its segment into its centers.

    A token that joins a center in each of several anchor frames counts in the size of each.

    Attributes:
        form: "ov", released for LLaVA-OneVision, or "video", for LLaVA-Video.
        min_segments: segments that a video has at least, c.
        threshold: cosine of neighboring global vectors below which a segment ends, tau.
        context: share of the budget that centers have, d.
        every: frames from one anchor frame to the next, p.
        own_weight: of a center against the mean of what joins it, beta.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency", "glob"})
    form: Literal["ov", "video"] = "ov"
    min_segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    every: int = 4
    own_weight: float = 0.6

    def segments(self, signals: Signals) -> list[range]:
        """The frames of each segment; one a frame, or `min_segments` for every video, mean that tau says nothing."""
        assert signals.glob is not None
        return segments(signals.glob, self.min_segments, self.threshold)

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """About budget // F tokens a frame: "ov" drops what does not divide by the anchor frames of a segment."""
        if self.form not in ("ov", "video"):
            raise ValueError(f'form is "ov" or "video", got {self.form!r}')
        per_frame = signals.tokens_per_frame(budget)
        parts = [part for segment in self.segments(signals) for part in self._of_segment(signals, segment, per_frame)]
        tokens, frame, place, size = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return Tokens.by_frame(tokens, frame, place, size).in_raster_order()

    def _of_segment(
        self, signals: Signals, segment: range, per_frame: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Tokens, frames, places and sizes of the salient, then of the centers of each anchor frame."""
        assert signals.saliency is not None
        x = signals.tokens[segment.start : segment.stop]  # [L,n,C]
        saliency = signals.saliency[segment.start : segment.stop]
        anchors = [t for t in range(len(x)) if (len(x) - 1 - t) % self.every == 0]
        salient, centers = self._counts(per_frame, len(x), len(anchors))
        is_salient = torch.zeros_like(saliency, dtype=torch.bool)
        for t, count in enumerate(salient):
            is_salient[t, top(saliency[t], count)] = True
        frame, place = is_salient.nonzero(as_tuple=True)
        yield x[frame, place], frame + segment.start, place, torch.ones_like(saliency[frame, place])

        pool = unit(x)[~is_salient]  # [P,C]
        frame_of_pool, place_of_pool = (~is_salient).nonzero(as_tuple=True)
        for t, count in zip(anchors, centers, strict=True):
            own = (frame_of_pool == t).nonzero().flatten()  # which of the pool
            members = x[t, place_of_pool[own]]
            if not (count := min(count, len(own))):
                continue
            chosen = own[density_peaks(members, count, 4).centers]  # [m], of the pool, by score
            joins = torch.ones_like(frame_of_pool, dtype=torch.bool)
            if self.form == "video":
                chosen = chosen.sort().values
                joins[chosen] = False
            label = first_largest(pool[joins] @ pool[chosen].T)  # [joining], the number of a center
            joined = label.bincount(minlength=count).to(x)[:, None]  # [m,1]
            means = group_sums(x[~is_salient][joins], label, count) / joined.clamp_min(1)
            weight = (1 / (joined + 1)).clamp_min(self.own_weight)
            places = place_of_pool[chosen]
            # A center of "ov" is among those that join; another of the same direction may have taken it.
            size = joined[:, 0] + 1 if self.form == "video" else joined[:, 0].clamp_min(1)
            tokens = torch.where(joined > 0, weight * x[t, places] + (1 - weight) * means, x[t, places])
            yield tokens, torch.full_like(places, segment.start + t), places, size

    def _counts(self, per_frame: int, frames: int, anchors: int) -> tuple[list[int], list[int]]:
        """Salient tokens of each frame, and centers of each anchor frame."""
        if self.form == "ov":
            context = int(per_frame * self.context + 1e-9)
            return [per_frame - context] * frames, [context * frames // anchors] * anchors
        context = int(per_frame * frames * self.context + 1e-9)
        salient, more = divmod(per_frame * frames - context, frames)
        centers, late = divmod(context, anchors)
        return (
            [salient + (t < more) for t in range(frames)],
            [centers + (a >= anchors - late) for a in range(anchors)],
        )
