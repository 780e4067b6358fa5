"""Memories of whole slots: the newest ones, ones at even distances, random ones.

They are what every other memory has to be compared with: the last four frames alone match most published memories
(SimpleStream, arXiv 2604.02317).
"""

from __future__ import annotations

import copy
import random
from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.base import StreamMemory, copied, split_slots, tokens_of_state, tokens_state
from liteframe.reduce.base import Tokens, join_tokens


class SlotMemory(StreamMemory):
    """Some of the slots, as they came.

    Args:
        budget: tokens that are kept at most.
    """

    budget: int

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self._slots: list[Tokens] = []

    @abstractmethod
    def _take(self, slot: Tokens) -> None:
        """Put a slot into `_slots`, or do not, and make room for it."""

    @property
    def _over(self) -> bool:
        return sum(len(slot.tokens) for slot in self._slots) > self.budget

    @override
    def add(self, clip: Tokens) -> None:
        self.check(max(count for _, _, count in clip.slots), len(clip.slots))
        for slot in split_slots(clip):
            self._take(copied(slot))

    @override
    def context(self, question: str) -> Tokens | None:
        return join_tokens(self._slots) if self._slots else None

    @override
    def state(self) -> dict[str, Tensor]:
        return tokens_state(join_tokens(self._slots)) if self._slots else {}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._slots = split_slots(tokens_of_state(state)) if state else []

    @override
    def fork(self) -> Self:
        other = copy.copy(self)
        other._slots = list(self._slots)
        return other


class Window(SlotMemory):
    """The newest slots."""

    name = "window"

    @override
    def _take(self, slot: Tokens) -> None:
        self._slots.append(slot)
        while self._over:
            self._slots.pop(0)


class Halving(SlotMemory):
    """Slots at even distances over all that was seen: the distance doubles whenever there are too many."""

    name = "halving"

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self._seen, self._stride = 0, 1  # the slots whose numbers are multiples of the stride are kept

    @override
    def _take(self, slot: Tokens) -> None:
        if self._seen % self._stride == 0:
            self._slots.append(slot)
        self._seen += 1
        while self._over:
            self._slots = self._slots[::2]
            self._stride *= 2

    @override
    def state(self) -> dict[str, Tensor]:
        state = super().state()
        return {**state, "seen": torch.tensor(self._seen), "stride": torch.tensor(self._stride)} if state else {}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._seen, self._stride = (int(state["seen"]), int(state["stride"])) if state else (0, 1)


class Random(SlotMemory):
    """A uniform random sample of all slots seen so far.

    Each slot draws a number that depends on its first frame and the seed alone, and the smallest numbers stay; so
    nothing random has to be remembered.

    Args:
        budget: tokens that are kept at most.
        seed: of the draws.
    """

    name = "random"

    def __init__(self, budget: int, seed: int = 0) -> None:
        super().__init__(budget)
        self.seed = seed

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "seed": self.seed}

    @override
    def _take(self, slot: Tokens) -> None:
        self._slots.append(slot)
        while self._over:
            draws = [self._draw(slot) for slot in self._slots]
            self._slots.pop(draws.index(max(draws)))

    def _draw(self, slot: Tokens) -> float:
        return random.Random(f"{self.seed} {slot.slots[0][0]}").random()
