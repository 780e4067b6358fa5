"""Memories of what the language model has read, as entries of its KV cache: a question waits for itself alone."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.key_values import PROTOTYPE, VIDEO, KeyValues
from liteframe.answer.memory.base import StreamMemory, split_slots
from liteframe.answer.reader import Reader
from liteframe.reduce.base import Tokens


class CacheMemory(StreamMemory):
    """Some entries of the language model's KV cache.

    Args:
        budget: entries of the video that are kept at most, in every layer; the text before it comes on top, and labels.
    """

    of_cache = True
    budget: int

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self._past: KeyValues | None = None
        self._seen = 0  # slots

    @abstractmethod
    def _take(self, past: KeyValues, reader: Reader, clip: Tokens) -> None:
        """Read the slots of a clip, numbered from `_seen` on, and forget what is too much."""

    @override
    def start(self, reader: Reader) -> None:
        if self._past is not None:
            raise ValueError(
                f"memory {self.name!r} has read its video behind one system message; start a new session for another"
            )
        reader.check_entries(f"memory {self.name!r}", "a memory of tokens, such as 'window'")
        super().start(reader)

    @override
    def add(self, clip: Tokens) -> None:
        reader = self.reader
        self.check(max(count for _, _, count in clip.slots), len(clip.slots))
        past = reader.begin() if self._past is None else self._past.fork()
        self._take(past, reader, clip)
        self._past, self._seen = past, self._seen + len(clip.slots)

    @override
    def context(self, question: str) -> KeyValues | None:
        return self._past

    @property
    @override
    def tokens(self) -> int:
        return 0 if self._past is None else self._past.count(VIDEO, PROTOTYPE)

    @property
    @override
    def bytes(self) -> int:
        return 0 if self._past is None else self._past.bytes

    @override
    def state(self) -> dict[str, Tensor]:
        return {} if self._past is None else {**self._past.state(), "seen": torch.tensor(self._seen)}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._past, self._seen = None, 0
        if state:
            past = self.reader.nothing()
            past.load_state(state)
            self._past, self._seen = past, int(state["seen"])

    @override
    def fork(self) -> Self:
        return copy.copy(self)  # `add` works on a fork of what was read, so neither sees what the other is given


class SlotCache(CacheMemory):
    """All entries of the newest slots."""

    @override
    def _take(self, past: KeyValues, reader: Reader, clip: Tokens) -> None:
        for number, slot in enumerate(split_slots(clip), self._seen):
            reader.read_slot(past, slot, number)
            while past.count(VIDEO) > self.budget:
                slots = past.slot[0]
                past.keep((slots != slots[slots >= 0].min()).nonzero()[:, 0])


class SinkWindow(SlotCache):
    """What stands before the video, and the newest slots.

    Unlike `window`, nothing is read again: a slot was read when all that the budget held stood before it.
    """

    name = "sink_window"
