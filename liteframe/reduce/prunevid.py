"""PruneVid, the part before the language model: what stands still once, then clusters (arXiv 2412.16117; 3.7).

The other part picks tokens for each question inside the language model and is left out. Shapes: F frames, L of a
segment, n tokens a frame, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import density_peaks, unit

NEIGHBORS = 7
UNCLUSTERED = 14  # the authors leave sets of so many tokens as they are


@dataclass(frozen=True)
class PruneVid(Reducer):
    """Of each segment the places that stand still, averaged over its frames, then each frame's others; clustered.

    Args:
        segment_ratio: segments sought, as a share of the frames.
        threshold: mean cosine between the frames of a segment above which a place stands still.
        cluster_ratio: what clustering leaves of a set of more than 14 tokens, 0.5 for the authors; the budget is then
            only a bound. None takes of every set as much as the budget asks for, our way to tables of equal tokens.
    """

    segment_ratio: float = 0.25
    threshold: float = 0.8
    cluster_ratio: float | None = None

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """At most the budget, but a token of each set at least.

        Raises:
            ValueError: the authors' clusters are more than the budget.
        """
        x = signals.tokens
        sets = list(still_and_moving(x, find_segments(x.mean(1), self.segment_ratio), self.threshold))
        share = budget / sum(len(each.tokens) for each in sets)
        parts = []
        for each in sets:
            count = len(each.tokens)
            if self.cluster_ratio is None:
                count = min(count, max(1, int(count * share + 1e-9)))
            elif count > UNCLUSTERED:
                count = max(1, int(count * self.cluster_ratio + 1e-9))
            parts.append(each.clustered(count))
        reduced = Tokens.by_frame(
            torch.cat([each.tokens for each in parts]),
            torch.cat([torch.full_like(each.place, each.frame) for each in parts]),
            torch.cat([each.place for each in parts]),
            torch.cat([each.size for each in parts]),
        )
        if self.cluster_ratio is not None and len(reduced.tokens) > budget:
            raise ValueError(f"PruneVid's clusters are {len(reduced.tokens)} tokens, more than the budget of {budget}")
        return reduced


class TokenSet(NamedTuple):
    """Tokens that are clustered together: [N,C] with their places [N] and sizes [N], filed under one frame."""

    tokens: Tensor
    place: Tensor
    size: Tensor
    frame: int

    def clustered(self, count: int) -> "TokenSet":
        """Means of `count` clusters, the best-scored first, at the places of their centers; or itself, if no more."""
        if count >= len(self.tokens):
            return self
        clusters = density_peaks(self.tokens, count, NEIGHBORS)
        sizes = self.size[0] * clusters.sizes  # those of a set are alike
        return TokenSet(clusters.means(self.tokens), self.place[clusters.centers], sizes, self.frame)


def still_and_moving(x: Tensor, segments: list[range], threshold: float) -> Iterator[TokenSet]:
    """Of each segment of [F,n,C] the set of still places, then those of its frames; none is empty."""
    for segment in segments:
        part, frames = x[segment.start : segment.stop], len(segment)  # [L,n,C]
        still = torch.zeros_like(part[0, :, 0], dtype=torch.bool)  # [n]
        if frames > 1:
            direction = unit(part)
            # The sum over all pairs is the square of the sum.
            pairs = direction.sum(0).square().sum(-1) - direction.square().sum((0, -1))  # [n]
            still = pairs / (frames * (frames - 1)) > threshold
            place = still.nonzero().flatten()
            if len(place):
                yield TokenSet(part[:, place].mean(0), place, torch.full_like(place, frames), segment.start)
        place = (~still).nonzero().flatten()
        if len(place):
            for offset, frame in enumerate(segment):
                yield TokenSet(part[offset, place], place, torch.ones_like(place), frame)


def find_segments(means: Tensor, ratio: float) -> list[range]:
    """Runs of frames whose means [F,C] are of one cluster, smoothed."""
    count = max(1, int(len(means) * ratio + 1e-9))
    labels = smoothed(density_peaks(means, count, NEIGHBORS).label.tolist())
    ends = [end for end in range(1, len(labels) + 1) if end == len(labels) or labels[end] != labels[end - 1]]
    return [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def smoothed(labels: list[int]) -> list[int]:
    """Let each label keep its longest runs only, if these are longer than 1; other frames take a neighbor's label.

    From left to right, a stretch of such frames takes the label of the longer run beside it, as they are by then;
    of equal ones the left, and 0 where there is none.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(length for other, length in runs if other == label) for label in labels}
    found = [label if length == longest[label] > 1 else None for label, length in runs for _ in range(length)]
    while None in found:
        begin = found.index(None)
        end = next((i for i in range(begin, len(found)) if found[i] is not None), len(found))
        left, right = _run_at_end(found[:begin]), _run_at_end(found[end:][::-1])
        found[begin:end] = [max(left, right, key=lambda run: run[1])[0]] * (end - begin)
    return [label for label in found if label is not None]


def _run_at_end(labels: list[int | None]) -> tuple[int, int]:
    """The last label and how often it stands there, 0 and 0 of none."""
    label, run = next(((label, len(list(run))) for label, run in groupby(labels[::-1])), (0, 0))
    return label or 0, run
