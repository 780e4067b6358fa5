"""A KV cache in two levels: in full where a question looks, averaged elsewhere (Video-XL-2, arXiv 2506.19225)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.key_values import VIDEO, KeyValues
from liteframe.answer.memory.cache import SlotCache
from liteframe.answer.memory.select import by_attention, mean_keys
from liteframe.answer.positions import rotate
from liteframe.reduce.selection import newest_top


class BiLevelCache(SlotCache):
    """All entries of the newest slots; a question reads those of a few blocks, and means of all others.

    The first block, the last and those that the question is about are read in full. In the authors' evaluation lists
    that another model made chose the blocks; here the question's queries and the blocks' keys do.

    Args:
        budget: entries of the video that are kept at most.
        pool: successive tokens of a slot of which a block's mean is made; a slot has one mean at least.
        chosen: blocks that a question chooses.
        slots_per_block: slots that are a block; 4 in the authors' code.

    Raises:
        ValueError: a number is below 1.
    """

    name = "bilevel"

    def __init__(self, budget: int, pool: int = 8, chosen: int = 4, slots_per_block: int = 4) -> None:
        super().__init__(budget)
        if min(pool, chosen, slots_per_block) < 1:
            raise ValueError(f"pool={pool}, chosen={chosen}, slots_per_block={slots_per_block}: at least 1 is needed")
        self.pool, self.chosen, self.slots_per_block = pool, chosen, slots_per_block

    @override
    def settings(self) -> dict[str, Any]:
        names = ("pool", "chosen", "slots_per_block")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    @override
    def context(self, question: str) -> KeyValues | None:
        past = self._past
        if past is None or self.pool == 1:
            return past
        blocks = past.slot[0].div(self.slots_per_block, rounding_mode="floor")  # [n], -1 before the video
        numbers = blocks[blocks >= 0].unique()
        between = numbers[1:-1].tolist()
        if len(between) <= self.chosen:
            return past
        video = past.kind[0] == VIDEO
        keys = torch.stack([mean_keys(past, video & (blocks == number)) for number in between])  # [K,l,H,d]
        dense = {between[place] for place in newest_top(by_attention(self.reader, question, keys), self.chosen)}
        return self._pooled(past, [number for number in between if number not in dense], blocks)

    def _pooled(self, past: KeyValues, coarse: list[int], blocks: Tensor) -> KeyValues:
        """A fork in which the tokens of some blocks are means of groups; labels stay."""
        view, video = past.fork(), past.kind[0] == VIDEO
        groups: list[Tensor] = []
        for slot in past.slot[0][torch.isin(blocks, torch.tensor(coarse, device=blocks.device))].unique().tolist():
            own = (video & (past.slot[0] == slot)).nonzero()[:, 0]
            groups += own.tensor_split(max(1, len(own) // self.pool))
        layers = range(len(past.positions))
        firsts = torch.stack([group[0] for group in groups])
        keys, values = [], []
        for layer in layers:
            bare, full = past.keys(layer), past.cache.layers[layer].values[0]
            mean = torch.stack([bare[:, group].mean(1) for group in groups], 1)  # [H,m,d]
            keys.append(rotate(mean, past.at(layer)[firsts], past.frequencies).to(full.dtype))
            values.append(torch.stack([full[:, group].float().mean(1) for group in groups], 1).to(full.dtype))
        gone = torch.cat(groups)
        everything = torch.arange(len(past), device=gone.device)
        view.keep(everything[~torch.isin(everything, gone)])
        axes = None if past.axes is None else past.axes[:, :, firsts]
        view.insert(torch.stack(keys), torch.stack(values), past.positions[:, firsts], past.slot[:, firsts], axes)
        return view
