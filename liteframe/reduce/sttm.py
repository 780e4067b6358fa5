"""STTM: a quadtree in space, then chains in time (ICCV 2025, arXiv 2507.07990; reducers_ablations.md 3.14).

Its authors act between two layers of the language model; before it, as here, is our choice. Shapes: F frames, (h,w)
grid of n cells, L levels of the quadtree, the finest first, with m boxes each; N boxes of a video, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from liteframe.reduce.base import Signals, Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.reduce.selection import unit

LEAST_TEMPORAL = 0.5  # what the authors go down to
BEYOND = 2.0  # any cosine
STEPS = 16  # of a bisection


@dataclass(frozen=True)
class STTM(Reducer):
    """Means of boxes that look alike inside and, from frame to frame, like a box that they contain or lie in.

    Args:
        spatial: cosine of a box with each of its quarters from which on it stays whole; 0.75 to 0.95 for the authors.
        temporal: cosine of two boxes from which on they become one, 0.5 to 0.9 for them; the budget is then only a
            bound. None is the highest that meets the budget, if 0.5 or more, else with another `spatial`.
        root: how far the largest boxes lie below those that divide a frame in 2x2.
    """

    spatial: float = 0.85
    temporal: float | None = None
    root: int = 1

    @override
    def reduce(self, signals: Signals, budget: int) -> Tokens:
        """The budget, or a little less where many cosines are equal.

        Raises:
            ValueError: the thresholds leave more tokens than the budget, or all do.
        """
        tree = build(signals.features, self.root)
        if self.temporal is not None:
            boxes = tree.boxes(self.spatial)
            label = boxes.chains(self.temporal, 0)
        else:
            boxes = fit_space(tree, self.spatial, budget)
            label = boxes.chains(LEAST_TEMPORAL if _reaches(boxes, budget) else -BEYOND, budget)
        if (count := len(set(label))) > budget:
            raise ValueError(f"STTM leaves {count} tokens at these thresholds, more than the budget of {budget}")
        return boxes.merged(tree, torch.tensor(label, device=signals.tokens.device))


class Tree(NamedTuple):
    """The quadtrees of a video, and how much alike boxes are that contain each other.

    Attributes:
        levels: [F,m,C] each, means of the boxes.
        box: int64 [L,n], which box of a level a cell lies in.
        corner: int64 [L,n], the first cell of that box.
        inside: [L,F,n], least cosine of that box with its quarters; infinite for cells.
        across: [L,L,F-1,n], cosine of that box of the one level in a frame with that of the other level in the next.
    """

    levels: list[Tensor]
    box: Tensor
    corner: Tensor
    inside: Tensor
    across: Tensor

    def boxes(self, spatial: float) -> Boxes:
        """The largest boxes that look enough like each of their quarters."""
        count, frames, n = self.inside.shape
        level = torch.arange(count, device=self.box.device)[:, None, None]
        level = torch.where(self.inside >= spatial, level, 0).amax(0)  # [F,n]
        cell = torch.arange(n, device=level.device)
        first = self.corner[level, cell] + n * torch.arange(frames, device=level.device)[:, None]  # [F,n]
        found, number, area = first.unique(return_inverse=True, return_counts=True)
        pairs = torch.stack([number[:-1], number[1:]], dim=-1)  # [F-1,n,2]
        frame = torch.arange(frames - 1, device=level.device)[:, None]
        likeness = self.across[level[:-1], level[1:], frame, cell]  # [F-1,n]
        return Boxes(level.flatten()[found], found, area, pairs.flatten(0, 1), likeness.flatten())


class Boxes(NamedTuple):
    """A choice of boxes that covers each frame once, in raster order of their first cells, frame by frame.

    Attributes:
        level: int64 [N].
        first: int64 [N], frame * n + first cell.
        area: int64 [N], cells.
        pairs: int64 [P,2], boxes of neighboring frames, one of which contains the other.
        likeness: [P], their cosine.
    """

    level: Tensor
    first: Tensor
    area: Tensor
    pairs: Tensor
    likeness: Tensor

    def chains(self, temporal: float, enough: int) -> list[int]:
        """Join boxes whose likeness is `temporal` or more, the most alike first, until not more than `enough` are left.

        Returns:
            The first box of each one's chain, for each box. Pairs of equal likeness are joined all or none.
        """
        order = self.likeness.argsort(descending=True, stable=True)
        likeness, pairs = self.likeness[order].tolist(), self.pairs[order].tolist()
        head, left, last = list(range(len(self.level))), len(self.level), float("inf")

        def find(box: int) -> int:
            while head[box] != box:
                head[box] = head[head[box]]
                box = head[box]
            return box

        for value, (one, other) in zip(likeness, pairs, strict=True):
            if value < temporal or (left <= enough and value < last):
                break
            a, b = find(one), find(other)
            head[max(a, b)] = min(a, b)
            left, last = left - (a != b), value
        return [find(box) for box in range(len(head))]

    def merged(self, tree: Tree, label: Tensor) -> Tokens:
        """The mean of each chain's boxes, large and small alike, filed under the first one."""
        n = tree.box.shape[1]
        frame, cell = self.first // n, self.first % n
        values = torch.empty(len(label), tree.levels[0].shape[-1], dtype=tree.levels[0].dtype, device=label.device)
        for number, level in enumerate(tree.levels):
            here = self.level == number
            values[here] = level[frame[here], tree.box[number, cell[here]]]
        heads, chain, count = label.unique(return_inverse=True, return_counts=True)
        tokens = torch.segment_reduce(values[chain.argsort(stable=True)], "mean", lengths=count)
        size = torch.zeros_like(count).index_add(0, chain, self.area)
        return Tokens.by_frame(tokens, frame[heads], cell[heads], size)


def build(features: Tensor, root: int) -> Tree:
    """The quadtrees of [F,h,w,C]; where a side is odd, its first row or column stands alone one level above."""
    h, w = features.shape[1:3]
    levels = [features]
    row, column = (torch.arange(side, device=features.device) for side in (h, w))
    places = [(row, column)]
    while max(levels[-1].shape[1:3]) > 2:
        odd_rows, odd_columns = (side % 2 for side in levels[-1].shape[1:3])
        filled = F.pad(levels[-1], (0, 0, odd_columns, 0, odd_rows, 0))
        members = F.pad(torch.ones_like(levels[-1][:1, ..., :1]), (0, 0, odd_columns, 0, odd_rows, 0))
        total, count = (x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).sum((2, 4)) for x in (filled, members))
        levels.append(total / count)
        row, column = (row + odd_rows) // 2, (column + odd_columns) // 2
        places.append((row, column))
    del levels[max(1, len(levels) - root) :]
    box = torch.stack(
        [(y[:, None] * level.shape[2] + x).flatten() for level, (y, x) in zip(levels, places, strict=False)]
    )
    flat = [level.flatten(1, 2) for level in levels]
    same = box[:, :, None] == box[:, None]  # [L,n,n]
    corner = torch.where(same, torch.arange(h * w, device=box.device), h * w).amin(2)
    first = [cells.unique() for cells in corner]  # [m] each, the boxes in raster order
    directions = [unit(level) for level in flat]
    inside = [torch.full_like(features[..., 0].flatten(1), torch.inf)]
    for number in range(1, len(levels)):
        parent = box[number, first[number - 1]]  # [m of quarters]
        likeness = _likeness(directions[number][:, parent], directions[number - 1])  # [F,m of quarters]
        least = torch.full_like(flat[number][..., 0], torch.inf)
        least = least.scatter_reduce(1, parent.expand_as(likeness), likeness, "amin")
        inside.append(least[:, box[number]])
    across = torch.stack([
        torch.stack([
            # Boxes of the finer level, each with the one of the other level that it lies in.
            _likeness(one[:-1, box[i, cells]], other[1:, box[j, cells]])[:, box[min(i, j)]]
            for j, other in enumerate(directions)
            for cells in [first[min(i, j)]]
        ])
        for i, one in enumerate(directions)
    ])  # fmt: skip
    return Tree(flat, box, corner, torch.stack(inside), across)


def _likeness(one: Tensor, other: Tensor) -> Tensor:
    return torch.einsum("fmc,fmc->fm", one, other)


def fit_space(tree: Tree, spatial: float, budget: int) -> Boxes:
    """The boxes at `spatial`, or nearest to it where those are too few, or too many at each temporal threshold."""
    boxes, low, high = tree.boxes(spatial), spatial, spatial
    if few := len(boxes.level) < budget:
        high = BEYOND
    elif not _reaches(boxes, budget):
        low = -BEYOND
    for _ in range(STEPS if low < high else 0):
        middle = (low + high) / 2
        boxes = tree.boxes(middle)
        too_many = len(boxes.level) >= budget if few else not _reaches(boxes, budget)
        low, high = (low, middle) if too_many else (middle, high)
    boxes = tree.boxes(high)
    return boxes if _reaches(boxes, budget) else tree.boxes(low)


def _reaches(boxes: Boxes, budget: int) -> bool:
    return len(set(boxes.chains(LEAST_TEMPORAL, budget))) <= budget
