"""What a streaming session asks of a memory, which holds tokens before the language model reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from liteframe.reduce.base import Tokens


class StreamMemory(ABC):
    """Remembers a video whose slots come in order, and shows tokens of it to the language model.

    A new one is a file here and an entry in `memories`; tests/answer/test_memories.py then holds it to what all keep.

    Attributes:
        name: in `memories`.
        append_only: whether what is shown grows at its end only, whatever is asked: then the language model can read it
            as it comes.
    """

    name: str
    append_only: bool = False

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
