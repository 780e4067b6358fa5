"""What a Q-Former makes of a stream behind two banks, which it was trained to (MA-LMM, arXiv 2404.05726)."""

from __future__ import annotations

import copy
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.bank import entry_of
from liteframe.answer.memory.base import StreamMemory, split_slots
from liteframe.models.vlm.qformer import MEMORY
from liteframe.models.vlm.trained_memory import part_of
from liteframe.reduce.bank import Bank
from liteframe.reduce.base import Tokens
from liteframe.reduce.qformer_banks import QFormerBanks, read_slot

VISUAL = "visual"


class QFormerMemory(StreamMemory):
    """Slots and the Q-Former's queries in banks of one length, compressed as `bank` is; the queries' last outputs are
    shown, as many whatever is kept, in one line that stands for the whole stream.

    Args:
        budget: tokens of slots that are kept at most, which says how long the banks are; the queries come on top.

    Raises:
        ValueError: the budget is below 1.
    """

    name = MEMORY
    trained = True
    lossless = False
    budget: int

    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self._banks: QFormerBanks | None = None
        self._shown: Tensor | None = None  # [q,C]

    @override
    def add(self, clip: Tokens) -> None:
        self.check(max(count for _, _, count in clip.slots), len(clip.slots))
        banks, shown = self._banks, self._shown
        for slot in split_slots(clip):
            length = self.budget // len(slot.tokens)
            (shown,), banks = read_slot(part_of(self.reader.model), banks, entry_of(slot), length)
        self._banks, self._shown = banks, shown

    @override
    def context(self, question: str) -> Tokens | None:
        if self._banks is None or self._shown is None:
            return None
        spans, count = self._banks.visual.spans.cpu(), len(self._shown)
        first, last, begin, end = spans[0, 0, 0], spans[-1, -1, 1], spans[0, 0, 2], spans[-1, -1, 3]
        return Tokens(
            self._shown,
            torch.full((count,), int(first)),
            torch.full((count,), -1),
            torch.full((count,), float(self._banks.visual.sizes.sum()) / count),
            [(int(first), int(last), count)],
            None if bool((begin + end).isnan()) else [(float(begin), float(end))],
        )

    @property
    @override
    def tokens(self) -> int:
        return 0 if self._banks is None else self._banks.visual.sizes.numel()

    @override
    def state(self) -> dict[str, Tensor]:
        if self._banks is None or self._shown is None:
            return {}
        named = {VISUAL: self._banks.visual} | {f"{n}": bank for n, bank in enumerate(self._banks.queries)}
        held = {f"{name}.{key}": value for name, bank in named.items() for key, value in vars(bank).items()}
        return held | {"shown": self._shown}

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._banks = self._shown = None
        if not state:
            return
        held = {name: tensor.to(self.reader.model.device) for name, tensor in state.items()}

        def bank(name: str) -> Bank:
            return Bank(*(held[f"{name}.{field}"] for field in ("tokens", "sizes", "spans")))

        layers = part_of(self.reader.model).settings.layers
        self._banks = QFormerBanks(bank(VISUAL), tuple(bank(f"{number}") for number in range(layers)))
        self._shown = held["shown"]

    @override
    def fork(self) -> Self:
        return copy.copy(self)  # banks are not changed but replaced
