"""MA-LMM's memory bank (arXiv 2404.05726): when it is full, the two neighbors in time that are most alike become one.

Shapes: T entries, N tokens of a slot, C channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.base import StreamMemory, split_slots
from liteframe.reduce.base import Tokens
from liteframe.reduce.selection import first_largest

GRANULARITIES = ("position", "slot")


def merge_most_alike(values: Tensor, sizes: Tensor, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Make one of two neighbors, their mean weighted by sizes.

    Args:
        values: [T,N,C], T >= 2.
        sizes: float32 [T,N], how many became each.
        together: one choice for all N, by the mean of their cosines; else one for each. The first of equals is taken.

    Returns:
        values [T-1,N,C], sizes [T-1,N] and the choice, int64 [N]: entries `choice` and `choice + 1` are one now.
    """
    exact = values.float()
    alike = F.cosine_similarity(exact[:-1], exact[1:], dim=-1)  # [T-1,N]
    if together:
        alike = alike.mean(1, keepdim=True).expand_as(alike)
    choice = first_largest(alike.T)  # [N]
    place = torch.arange(values.shape[1], device=values.device)
    size = sizes[choice, place] + sizes[choice + 1, place]  # [N]
    weighted = exact * sizes[..., None]
    mean = (weighted[choice, place] + weighted[choice + 1, place]) / size[:, None]  # [N,C]
    values, sizes = drop_row(values, choice + 1), drop_row(sizes, choice + 1)
    values[choice, place], sizes[choice, place] = mean.to(values.dtype), size
    return values, sizes, choice


def drop_row(values: Tensor, row: Tensor) -> Tensor:
    """Without one entry of each position: [T,N,...] and int64 [N] -> [T-1,N,...], a copy."""
    stays = torch.arange(len(values), device=values.device)[:, None] != row  # [T,N]
    order = stays.T.nonzero()[:, 1].view(len(row), -1).T  # [T-1,N]
    return values[order, torch.arange(len(row), device=values.device)]


@dataclass(frozen=True)
class Bank:
    """Entries of a bank.

    Attributes:
        tokens: [T,N,C].
        sizes: float32 [T,N], slots that became each.
        spans: float64 [T,N,4], first frame, last frame, and their seconds (nan where they are not told).
    """

    tokens: Tensor
    sizes: Tensor
    spans: Tensor


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
            (first, last, count), seconds = slot.slots[0], (slot.times or [(float("nan"),) * 2])[0]
            device = slot.tokens.device
            spans = torch.tensor([first, last, *seconds], dtype=torch.float64, device=device).repeat(count, 1)  # [N,4]
            new = Bank(slot.tokens[None], torch.ones(1, count, device=device), spans[None])
            if bank is not None:
                pairs = ((bank.tokens, new.tokens), (bank.sizes, new.sizes), (bank.spans, new.spans))
                new = Bank(*(torch.cat(pair) for pair in pairs))
            bank = new if new.sizes.numel() <= self.budget else self._merged(new)
        self._bank = bank

    def _merged(self, bank: Bank) -> Bank:
        tokens, sizes, choice = merge_most_alike(bank.tokens, bank.sizes, self.granularity == "slot")
        place = torch.arange(len(choice), device=choice.device)
        joined = bank.spans.clone()
        joined[choice, place, 1::2] = bank.spans[choice + 1, place, 1::2]  # from the one's start to the other's end
        return Bank(tokens, sizes, drop_row(joined, choice + 1))

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
