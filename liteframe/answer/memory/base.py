"""What a streaming session asks of a memory, which holds tokens before the language model reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from liteframe.reduce.base import Tokens


class StreamMemory(ABC):
    """Remembers a video whose slots come in order, and shows tokens of it to the language model.

    A new one is a file here and an entry in `memories`; tests/answer/test_memories.py then holds it to what all keep.

    Args:
        budget: tokens of the video that are kept at most; None has no bound.

    Attributes:
        name: in `memories`.
        append_only: whether what is shown grows at its end only, whatever is asked: then the language model can read it
            as it comes.

    Raises:
        ValueError: the budget is below 1.
    """

    name: str
    append_only: bool = False
    budget: int | None = None

    def __init__(self, budget: int | None = None) -> None:
        if budget is not None and budget < 1:
            raise ValueError(
                f"memory {self.name!r}: a budget of {budget} tokens keeps nothing; give one slot's at least"
            )
        self.budget = budget

    def check(self, slot_tokens: int) -> None:
        """Make sure that the budget suffices for slots of so many tokens; a session asks before the first.

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

    @abstractmethod
    def add(self, clip: Tokens) -> None:
        """Remember the slots of a clip; the only method that changes the memory.

        Args:
            clip: frames counted from the start of the stream; its tensors may be kept, not changed.
        """

    @abstractmethod
    def context(self, question: str) -> Tokens | None:
        """What is shown for a question, in the order of time; None before the first clip."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that is remembered, as tensors by name, `tokens` [M,C] among them; empty before the first clip."""

    @abstractmethod
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Remember what `state` of a memory with the same settings gave, and nothing else."""

    @abstractmethod
    def fork(self) -> StreamMemory:
        """A memory that starts from this one and shares its tensors; neither sees what the other is given."""


def join_tokens(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of parts of a video, one after another; at least one part."""
    names = ("tokens", "frame", "place", "size")
    tokens, frame, place, size = (torch.cat([getattr(part, name) for part in parts]) for name in names)
    return Tokens(tokens, frame, place, size, [slot for part in parts for slot in part.slots])


def split_slots(tokens: Tokens) -> list[Tokens]:
    """Slot by slot, as copies, so that one can be kept without the memory of all."""
    counts = [count for _, _, count in tokens.slots]
    names = ("tokens", "frame", "place", "size")
    parts = zip(*(getattr(tokens, name).split(counts) for name in names), tokens.slots, strict=True)
    return [
        replace(tokens, **{name: field.clone() for name, field in zip(names, own, strict=True)}, slots=[slot])
        for *own, slot in parts
    ]


def tokens_state(tokens: Tokens) -> dict[str, Tensor]:
    """Tokens as tensors by name; their slots are [S,3]."""
    slots = torch.tensor([list(slot) for slot in tokens.slots], dtype=torch.long).view(-1, 3)  # [S,3]
    return {
        "tokens": tokens.tokens,
        "frame": tokens.frame,
        "place": tokens.place,
        "size": tokens.size,
        "slots": slots,
    }


def tokens_of_state(state: dict[str, Tensor]) -> Tokens:
    """Tokens that `tokens_state` gave as tensors by name."""
    slots = [(first, last, count) for first, last, count in state["slots"].tolist()]
    return Tokens(state["tokens"], state["frame"], state["place"], state["size"], slots)
