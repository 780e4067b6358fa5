"""What a streaming session asks of a memory: of tokens before the language model reads them, or of what it has read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from liteframe.answer.key_values import KeyValues
from liteframe.answer.reader import Reader
from liteframe.reduce.base import Tokens

FIELDS = ("tokens", "frame", "place", "size")  # tensors of Tokens, one entry a token


class StreamMemory(ABC):
    """Remembers a video whose slots come in order, and shows tokens of it to the language model.

    A new one is a file here and an entry in `memories`; tests/answer/test_memories.py then holds it to what all keep.

    Args:
        budget: tokens of the video that are kept at most; None has no bound.

    Attributes:
        name: in `memories`.
        append_only: whether what is shown grows at its end only, whatever is asked: then the language model can read it
            as it comes.
        of_cache: whether it keeps entries of the language model's KV cache.
        trained: whether it reads with what an adapter was trained for.
        lossless: whether it can show the whole prompt while all fits.

    Raises:
        ValueError: the budget is below 1.
    """

    name: str
    append_only: bool = False
    of_cache: bool = False
    trained: bool = False
    lossless: bool = True
    budget: int | None = None
    _reader: Reader | None = None

    def __init__(self, budget: int | None = None) -> None:
        if budget is not None and budget < 1:
            raise ValueError(
                f"memory {self.name!r}: a budget of {budget} tokens keeps nothing; give one slot's at least"
            )
        self.budget = budget

    def check(self, slot_tokens: int, slots: int) -> None:
        """Make sure that the budget suffices; a session asks before the first slot.

        Args:
            slot_tokens: tokens of a slot.
            slots: that come together, in a clip.

        Raises:
            ValueError: it does not.
        """
        if self.budget is not None and self.budget < slot_tokens:
            raise ValueError(
                f"memory {self.name!r}: a budget of {self.budget} tokens is below one slot of this model, which has "
                f"{slot_tokens}; give at least that"
            )

    def settings(self) -> dict[str, Any]:
        """What a memory must have been made with to take over the state of this one; JSON can hold it."""
        return {"budget": self.budget}

    def start(self, reader: Reader) -> None:
        """Be told by a session how its language model reads.

        Raises:
            ValueError: what is remembered was read behind another system message.
        """
        self._reader = reader

    @property
    def reader(self) -> Reader:
        """How the session's language model reads.

        Raises:
            ValueError: no session has told.
        """
        if self._reader is None:
            raise ValueError(f"memory {self.name!r} reads with a language model; give it to a StreamSession")
        return self._reader

    @property
    def trained_for(self) -> str | None:
        """What `load_video_llm` is told of this memory: its name, where it needs an adapter that was trained for it."""
        return self.name if self.trained else None

    @property
    def tokens(self) -> int:
        """Tokens of the video that are held."""
        state = self.state()
        return len(state["tokens"]) if state else 0

    @property
    def bytes(self) -> int:
        """Memory that they take."""
        return sum(tensor.nbytes for tensor in self.state().values())

    @abstractmethod
    def add(self, clip: Tokens) -> None:
        """Remember the slots of a clip; the only method that changes the memory.

        Args:
            clip: frames counted from the start of the stream; its tensors may be kept, not changed.
        """

    @abstractmethod
    def context(self, question: str) -> Tokens | KeyValues | None:
        """What is shown for a question, in the order of time, or what the language model has read; None before the
        first clip. It is not changed.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that is remembered, as tensors by name; empty before the first clip. `tokens` [M,C] is among them, or the
        memory has a `tokens` of its own.
        """

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Remember what `state` of a memory with the same settings gave, and nothing else."""

    @abstractmethod
    def fork(self) -> StreamMemory:
        """A memory that starts from this one and shares its tensors; neither sees what the other is given."""


def split_slots(tokens: Tokens, every: int = 1) -> list[Tokens]:
    """Parts of `every` slots, the last one of what is left; they share the tensors of the whole."""
    parts, start = [], 0
    for first in range(0, len(tokens.slots), every):
        chosen = slice(first, first + every)
        end = start + sum(count for _, _, count in tokens.slots[chosen])
        own = {name: getattr(tokens, name)[start:end] for name in FIELDS}
        times = tokens.times and tokens.times[chosen]
        parts.append(replace(tokens, **own, slots=tokens.slots[chosen], times=times))
        start = end
    return parts


def copied(tokens: Tokens) -> Tokens:
    """The same with tensors of its own, so that a part can be kept without the memory of the whole."""
    return replace(tokens, **{name: getattr(tokens, name).clone() for name in FIELDS})


def tokens_state(tokens: Tokens) -> dict[str, Tensor]:
    """Tokens as tensors by name; their slots are [S,3], their times [S,2], their shape [2]."""
    slots = torch.tensor([list(slot) for slot in tokens.slots], dtype=torch.long).view(-1, 3)  # [S,3]
    state = {
        "tokens": tokens.tokens,
        "frame": tokens.frame,
        "place": tokens.place,
        "size": tokens.size,
        "slots": slots,
    }
    if tokens.times is not None:
        state["times"] = torch.tensor([list(time) for time in tokens.times], dtype=torch.float64).view(-1, 2)
    if tokens.shape is not None:
        state["shape"] = torch.tensor(tokens.shape)
    return state


def tokens_of_state(state: dict[str, Tensor]) -> Tokens:
    """Tokens that `tokens_state` gave as tensors by name."""
    slots = [(first, last, count) for first, last, count in state["slots"].tolist()]
    times = [(begin, end) for begin, end in state["times"].tolist()] if "times" in state else None
    rows, columns = state["shape"].tolist() if "shape" in state else (0, 0)
    shape = (rows, columns) if rows else None
    return Tokens(state["tokens"], state["frame"], state["place"], state["size"], slots, times, shape)
