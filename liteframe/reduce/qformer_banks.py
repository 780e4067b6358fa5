"""The two banks of MA-LMM's Q-Former (arXiv 2404.05726), slot by slot: one road for training and for sessions.

Shapes: T entries, B videos that are read side by side, N tokens of a slot, q queries, C and W channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from liteframe.reduce.bank import Bank


class QFormerBanks(NamedTuple):
    """What was read, without gradients.

    Attributes:
        visual: tokens [T,B*N,C] of slots, with first and last frame and their seconds.
        queries: of each layer, what it was given, [T,B*q,W].
    """

    visual: Bank
    queries: tuple[Bank, ...]


def read_slot(
    former: Any, banks: QFormerBanks | None, slot: Bank, length: int, videos: int = 1
) -> tuple[Tensor, QFormerBanks]:
    """Read a slot: attend to the banks and to it, then append it, then compress what is too long.

    Args:
        former: a QFormer.
        banks: of the slots before; None before the first.
        slot: [1,B*N,C] with its span.
        length: slots of a bank at most.
        videos: B.

    Returns:
        What the language model is shown now, [B,q,C], and the banks with the slot.
    """
    visual = slot if banks is None else banks.visual.joined(slot)
    frames, seconds = visual.spans[..., :2].mean(-1), visual.spans[..., 2:].mean(-1)  # [T,B*N]
    seconds = torch.where(seconds.isnan(), frames, seconds)  # frames without times are a second apart
    settings = former.settings
    empty = former.queries.new_empty(0, videos * settings.queries, settings.width)
    earlier = [empty] * settings.layers if banks is None else [bank.tokens for bank in banks.queries]
    shown, given = former(*(part.unflatten(1, (videos, -1)) for part in (visual.tokens, seconds)),
                          [kept.unflatten(1, (videos, -1)) for kept in earlier])  # fmt: skip
    new = [Bank.of(one.detach().flatten(0, 1)) for one in given]
    queries = new if banks is None else [bank.joined(one) for bank, one in zip(banks.queries, new, strict=True)]
    return shown, QFormerBanks(visual.at_most(length), tuple(bank.at_most(length) for bank in queries))


def read_video(former: Any, slots: Tensor, spans: Tensor, length: int) -> Tensor:
    """What the language model is shown behind the last slot, [B,q,C]; only that slot is read with gradients.

    Args:
        former: a QFormer.
        slots: [B,S,N,C], without gradients.
        spans: float64 [B,S,4], first and last frame and their seconds, which may be nan.
        length: slots of a bank at most.
    """
    banks: QFormerBanks | None = None
    videos, count, tokens, _ = slots.shape
    for number in range(count):
        span = spans[:, number].repeat_interleave(tokens, 0)[None]  # [1,B*N,4]
        values = slots[:, number].flatten(0, 1)[None]  # [1,B*N,C]
        entry = Bank(values, torch.ones(values.shape[:2], device=values.device), span)
        with nullcontext() if number == count - 1 else torch.no_grad():
            shown, banks = read_slot(former, banks, entry, length, videos)
    return shown
