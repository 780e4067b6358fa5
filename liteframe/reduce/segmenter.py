"""Segments of a video, each summarized as it ends, and into how many tokens (Video-XL, arXiv 2409.14485)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor

from liteframe.reduce.scenes import StreamCutter, alike

LONGEST = 16  # slots of a segment: until it ends, all of its tokens are read by each other
DYNAMIC = (4, 8, 16)  # much change, about as much as so far, little
MUCH, LITTLE = 1.5, 0.5  # times the change so far

Segments = int | Literal["changes"]
Ratio = int | Literal["dynamic"]


def check_segments(segments: Segments) -> None:
    """Refuse segments that are too long to be read at once.

    Raises:
        ValueError: they are not of 1 to 16 slots.
    """
    if segments != "changes" and not 1 <= segments <= LONGEST:
        raise ValueError(
            f"segments={segments}: a segment has 1 to {LONGEST} slots, or ends where the video changes "
            f"('changes'), after {LONGEST} at the latest; its mask reaches no further"
        )


def check_ratio(ratio: Ratio) -> None:
    """Refuse a summary token of nothing.

    Raises:
        ValueError: the ratio is below 1.
    """
    if ratio != "dynamic" and ratio < 1:
        raise ValueError(f"ratio={ratio}: a summary token stands for 1 token at least, or for 4, 8 or 16 ('dynamic')")


class Segmenter:
    """Says, slot by slot, when a segment ends, and how many of its tokens each of its summary tokens stands for.

    Args:
        segments: slots of each; "changes" ends them where the video changes, after 2 to 16.
        ratio: of all segments; "dynamic": 4 where neighboring slots differ at least 1.5 times as much as in the
            segments before, 16 where at most half as much, else 8; or what draws one.

    Raises:
        ValueError: segments are too long, or a ratio is below 1.
    """

    def __init__(self, segments: Segments, ratio: Ratio | Callable[[], int]) -> None:
        check_segments(segments)
        if not callable(ratio):
            check_ratio(ratio)
        self.segments, self.ratio = segments, ratio
        self._cutter = StreamCutter(longest=LONGEST) if segments == "changes" else None
        self._open: list[Tensor] = []  # mean tokens of the slots since the last segment
        self._changes, self._mean = 0, 0.0  # of neighboring slots within the segments so far

    def add(self, glob: Tensor) -> tuple[int, int] | None:
        """See the next slot.

        Args:
            glob: [C], its mean token.

        Returns:
            slots, of those since the last segment, that are a segment now, and its ratio; None if none are.
        """
        self._open.append(glob)
        if self._cutter is not None:
            slots = self._cutter.add(glob)
        else:
            slots = self.segments if len(self._open) == self.segments else None
        return None if slots is None else self._closed(slots)

    def rest(self) -> tuple[int, int] | None:
        """What `add` would say if the slots that are left were a segment; None where none are."""
        return self._closed(len(self._open)) if self._open else None

    def _closed(self, slots: int) -> tuple[int, int]:
        own, self._open = self._open[:slots], self._open[slots:]
        if callable(self.ratio):
            return slots, self.ratio()
        return slots, self._by_change(own) if self.ratio == "dynamic" else self.ratio

    def _by_change(self, globs: Sequence[Tensor]) -> int:
        much, usual, little = DYNAMIC
        changes = [1 - alike(one, other) for one, other in pairwise(globs)]
        if not changes:
            return usual
        before, now = self._mean, fmean(changes)
        self._changes += len(changes)
        self._mean += (now - before) * len(changes) / self._changes
        if before == 0:  # nothing to compare with
            return usual
        return much if now >= MUCH * before else little if now <= LITTLE * before else usual

    def state(self) -> Tensor:
        """What is known but for the slots since the last segment, float64 [2 or 6]."""
        own = torch.tensor([self._changes, self._mean], dtype=torch.float64)
        return own if self._cutter is None else torch.cat([own, self._cutter.state()])

    def load_state(self, state: Tensor, globs: Sequence[Tensor]) -> None:
        """Go on from a state, with the mean tokens of the slots since the last segment."""
        self._changes, self._mean = int(state[0]), float(state[1])
        self._open = list(globs)
        if self._cutter is not None:
            self._cutter.load_state(state[2:], globs)

    def fork(self) -> Segmenter:
        """One that goes on from here."""
        other = copy.copy(self)
        other._open = list(self._open)
        other._cutter = None if self._cutter is None else self._cutter.fork()
        return other
