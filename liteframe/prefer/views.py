"""What of a video the two answers of a pair are about (TPO, arXiv 2501.13919, section 3.2): slots, as numbers.

`irrelevant` (localized): the slots of the question's span, against as many outside of it. `incomplete`
(comprehensive): all slots, against half of them. `shuffled` (ours, for order): all, against all in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Views(NamedTuple):
    """Numbers of slots, in the order in which they are shown."""

    chosen: list[int]
    rejected: list[int]


class NoViewsError(Exception):
    """A video or a question allows no pair of a kind; the message says why, in words that are counted."""


def span_slots(times: Sequence[float], per_slot: int, start: float | None, end: float | None) -> list[int]:
    """The slots that show a frame of a span.

    Args:
        times: when each frame is shown, in seconds.
        per_slot: frames of a slot.
        start: of the span; None is the video's.
        end: of the span; None is the video's. Both None: there is no span, and no slot.
    """
    if start is None and end is None:
        return []
    first, last = start or 0.0, np.inf if end is None else end
    return sorted({number // per_slot for number, time in enumerate(times) if first <= time <= last})


def irrelevant(slots: int, span: list[int], rng: np.random.Generator) -> Views:
    """The span, against as many slots outside of it, in order; all of them where there are fewer."""
    outside = [slot for slot in range(slots) if slot not in span]
    if not span:
        raise NoViewsError("no span, or no frame in it")
    if not outside:
        raise NoViewsError("nothing outside of the span")
    picked = rng.choice(outside, min(len(span), len(outside)), replace=False)
    return Views(span, sorted(picked.tolist()))


def incomplete(slots: int, span: list[int], rng: np.random.Generator) -> Views:
    """All slots, against half of them, in order."""
    if slots < 2:
        raise NoViewsError("a single slot")
    return Views(list(range(slots)), sorted(rng.choice(slots, slots // 2, replace=False).tolist()))


def shuffled(slots: int, span: list[int], rng: np.random.Generator) -> Views:
    """All slots, against all of them in another order."""
    if slots < 2:
        raise NoViewsError("a single slot")
    order = list(range(slots))
    while order == list(range(slots)):
        order = rng.permutation(slots).tolist()
    return Views(list(range(slots)), order)


KINDS: dict[str, Callable[[int, list[int], np.random.Generator], Views]] = {
    "irrelevant": irrelevant,
    "incomplete": incomplete,
    "shuffled": shuffled,
}
