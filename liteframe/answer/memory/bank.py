"""MA-LMM's memory bank (arXiv 2404.05726) of what the language model reads, without its Q-Former."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.base import StreamMemory, split_slots
from liteframe.reduce.bank import Bank
from liteframe.reduce.base import Tokens

GRANULARITIES = ("position", "slot")


class BankMemory(StreamMemory):
    """Slots, of which neighbors that are alike have become their mean.

    Merged in the language model's space, where the authors' bank is in front of a Q-Former; nothing is trained.

    Args:
        budget: tokens that are kept at most: as many entries as slots of these tokens.
        granularity: "position" merges at each place of the grid on its own, as the authors do, so that an entry can be
            of different frames at different places; "slot" merges whole slots.

    Raises:
        ValueError: there is no such granularity, or the budget is below 1.
    """

    name = "bank"
    budget: int

    def __init__(self, budget: int, granularity: str = "position") -> None:
        super().__init__(budget)
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity={granularity!r}: expected one of {', '.join(GRANULARITIES)}")
        self.granularity = granularity
        self._bank: Bank | None = None

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "granularity": self.granularity}

    @override
    def add(self, clip: Tokens) -> None:
        self.check(max(count for _, _, count in clip.slots), len(clip.slots))
        bank = self._bank
        for slot in split_slots(clip):
            new = entry_of(slot)
            joined = new if bank is None else bank.joined(new)
            bank = joined.at_most(self.budget // len(slot.tokens), self.granularity == "slot")
        self._bank = bank

    @override
    def context(self, question: str) -> Tokens | None:
        if self._bank is None:
            return None
        (entries, count), spans = self._bank.sizes.shape, self._bank.spans.cpu()
        first, last = spans[..., 0].amin(1), spans[..., 1].amax(1)  # [T]
        slots = [(int(a), int(b), count) for a, b in zip(first, last, strict=True)]
        begin, end = spans[..., 2].amin(1).tolist(), spans[..., 3].amax(1).tolist()
        return Tokens(
            self._bank.tokens.flatten(0, 1),
            first.long().repeat_interleave(count),
            torch.arange(count).repeat(entries),
            self._bank.sizes.flatten().cpu(),
            slots,
            None if bool(spans.isnan().any()) else list(zip(begin, end, strict=True)),
        )

    @property
    @override
    def tokens(self) -> int:
        return 0 if self._bank is None else self._bank.sizes.numel()

    @override
    def state(self) -> dict[str, Tensor]:
        return {} if self._bank is None else dict(vars(self._bank))

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        device = state["tokens"].device if state else None
        self._bank = Bank(**{name: tensor.to(device) for name, tensor in state.items()}) if state else None

    @override
    def fork(self) -> Self:
        return copy.copy(self)  # a bank is not changed but replaced


def entry_of(slot: Tokens) -> Bank:
    """A slot as an entry, with its first and last frame and their seconds (nan where they are not told)."""
    (first, last, _), seconds = slot.slots[0], (slot.times or [(float("nan"),) * 2])[0]
    return Bank.of(slot.tokens, first, last, *seconds)
