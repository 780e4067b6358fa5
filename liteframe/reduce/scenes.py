"""Where a video changes: between which slots its scenes are cut, for whole videos and for streams.

Shapes: S slots, C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 15  # boundaries of one video, as in VideoLLaMB


def depths(cosines: Sequence[float]) -> list[float]:
    """How deep the valley is at each similarity of neighbors (VideoLLaMB): from the tops to its left and its right."""
    found = []
    for here, value in enumerate(cosines):
        left = right = value
        for other in reversed(cosines[:here]):
            if other < left:
                break
            left = other
        for other in cosines[here + 1 :]:
            if other < right:
                break
            right = other
        found.append(left + right - 2 * value)
    return found


def boundaries(cosines: Sequence[float]) -> list[int]:
    """Slots after which a whole video is cut: where the depth is above its mean by half a standard deviation.

    Args:
        cosines: between each slot and the next, S - 1 of them.

    Returns:
        ascending; the 15 deepest where there are more.
    """
    if len(cosines) < 2:
        return []
    depth = torch.tensor(depths(cosines), dtype=torch.float64)
    above = (depth > depth.mean() + 0.5 * depth.std()).nonzero()[:, 0]
    deepest = above[depth[above].argsort(descending=True, stable=True)[:MOST]]
    return sorted(deepest.tolist())


class StreamCutter:
    """Cuts a stream into segments without knowing what comes: a valley counts when similarity falls again behind it.

    Depths are judged by the mean and deviation of those before (Welford's sums). A segment has `shortest` to `longest`
    slots; a valley that is not over is judged after `lookahead` slots.

    Args:
        shortest: slots that a segment has at least.
        longest: slots that a segment has at most; bounds what has to be held.
        lookahead: slots after a valley that are waited for at most.
    """

    def __init__(self, shortest: int = 2, longest: int = 16, lookahead: int = 2) -> None:
        if not (1 <= shortest <= longest and lookahead >= 1):
            raise ValueError(
                f"segments of {shortest} to {longest} slots, {lookahead} ahead: expected 1 <= shortest <= longest, "
                "lookahead >= 1"
            )
        self.shortest, self.longest, self.lookahead = shortest, longest, lookahead
        self._cosines: list[float] = []  # within the segment that is not cut yet
        self._judged = 0  # of them
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._last: Tensor | None = None

    def add(self, glob: Tensor) -> int | None:
        """See the next slot.

        Args:
            glob: [C], its mean token.

        Returns:
            how many slots, of those since the last cut, are a segment now; None if none are.
        """
        if self._last is not None:
            self._cosines.append(alike(self._last, glob))
        self._last = glob
        while self._judged < len(self._cosines):
            here, after = self._judged, self._cosines[self._judged + 1 :]
            falls = any(b < a for a, b in zip([self._cosines[here], *after], after, strict=False))
            if not falls and len(after) < self.lookahead:
                break
            self._judged += 1
            if self._is_cut(depths(self._cosines)[here]) and here + 1 >= self.shortest:
                return self._cut(here + 1)
        return self._cut(self.longest) if len(self._cosines) >= self.longest else None

    def state(self) -> Tensor:
        """What is known but for the slots since the last cut, float64 [4]."""
        return torch.tensor([self._judged, self._count, self._mean, self._squares], dtype=torch.float64)

    def load_state(self, state: Tensor, globs: Sequence[Tensor]) -> None:
        """Go on from a state, with the mean tokens of the slots since the last cut."""
        judged, count, self._mean, self._squares = state.tolist()
        self._judged, self._count, self._last = int(judged), int(count), globs[-1] if globs else None
        self._cosines = [alike(one, other) for one, other in pairwise(globs)]

    def fork(self) -> StreamCutter:
        """One that goes on from here."""
        other = copy.copy(self)
        other._cosines = list(self._cosines)
        return other

    def _is_cut(self, depth: float) -> bool:
        enough = self._count >= 2
        deviation = math.sqrt(self._squares / (self._count - 1)) if enough else 0.0
        above = enough and depth > self._mean + 0.5 * deviation
        self._count += 1
        before, self._mean = self._mean, self._mean + (depth - self._mean) / self._count
        self._squares += (depth - before) * (depth - self._mean)
        return above

    def _cut(self, slots: int) -> int:
        self._cosines = self._cosines[slots:]
        self._judged = max(0, self._judged - slots)
        return slots


def alike(one: Tensor, other: Tensor) -> float:
    """Cosine between two vectors [C]."""
    return float(F.cosine_similarity(one.float(), other.float(), dim=0))
