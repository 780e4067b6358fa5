"""A KV cache of bounded length whose entries are kept by score, without training: StreamMem and its relatives.

Shapes: L layers, H key-value heads, n entries, d channels a head.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.key_values import LABEL, PROTOTYPE, TEXT, VIDEO, KeyValues
from liteframe.answer.memory.base import split_slots
from liteframe.answer.memory.cache import CacheMemory
from liteframe.answer.memory.segments import filter_slots
from liteframe.answer.reader import Reader, watch_queries
from liteframe.models.vlm.chat import user_prompt
from liteframe.reduce.base import Tokens
from liteframe.reduce.selection import top

SCORES = ("attention", "tar+van", "mix")
MERGES = ("weighted", "mean", "none")
Prototypes: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
LABELED_SLOTS = 4  # the newest, whose labels stay where entries were forgotten


def saliency(queries: Tensor, keys: Tensor, candidates: Tensor) -> Tensor:
    """Attention that some queries pay to candidates among the entries, mean over heads and queries.

    Args:
        queries: float32 [heads,m,d].
        keys: [H,n,d].
        candidates: bool [n]; the softmax is over these.

    Returns:
        float32 [n], 0 for what is no candidate.
    """
    repeated = keys.float().repeat_interleave(len(queries) // len(keys), 0)  # [heads,n,d]
    scores = queries @ repeated.mT / keys.shape[-1] ** 0.5  # [heads,m,n]
    return scores.masked_fill(~candidates, -torch.inf).softmax(-1).mean((0, 1))


def best(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores [n], ascending; of equals the newest."""
    return (len(scores) - 1 - top(scores.flip(0), count)).sort().values


def change_of_keys(keys: Tensor, slot: Tensor, place: Tensor) -> Tensor:
    """InfiniPot-V's score of change: minus the mean cosine with keys at the same place of the newest quarter of slots.

    Args:
        keys: float32 [H,n,d], before rotation; slots after slots.
        slot: int64 [n], number of each entry's slot.
        place: int64 [n], of the entry in its slot.

    Returns:
        float32 [n], mean over heads; the newest slots themselves are infinite, so that they stay.
    """
    slots = slot.unique()
    recent = slots[-max(1, len(slots) // 4) :]
    is_recent = torch.isin(slot, recent)
    length = keys.norm(dim=-1, keepdim=True).clamp_min(1e-8)
    alike = (keys / length) @ (keys[:, is_recent] / length[:, is_recent]).mT  # [H,n,r]
    same = place[:, None] == place[is_recent]  # [n,r]
    scores = -(alike * same).sum(-1).mean(0) / same.sum(-1).clamp_min(1)
    return scores.masked_fill(is_recent, torch.inf)


class SaliencyCache(CacheMemory):
    """The entries of each layer that the end of the prompt attends to most, and one prototype of each slot.

    StreamMem (arXiv 2508.15717): after each clip, the words with which every answer begins (the chat template's end of
    a turn and start of the assistant's) are read in place of a question, and what they look at is kept.

    Args:
        budget: entries of the video that are kept at most, in every layer.
        score: "attention"; "tar+van" (InfiniPot-V: half by keys that differ from the newest at their place, half by the
            length of values); "mix" (after HERMES: recency in the first layer, attention in the last, and between them
            in proportion).
        merge: a slot's prototype: the mean of its keys and values "weighted" by attention, the plain "mean", or "none".
        threshold: cosine above which successive slots of a clip are read as one (0.95 in the paper, for frames); None
            reads all.
        share: one choice for all layers, by their mean score.

    Raises:
        ValueError: there is no such score or merge, or the budget is below 1.
    """

    name = "saliency"

    def __init__(
        self,
        budget: int,
        score: str = "attention",
        merge: str = "weighted",
        threshold: float | None = 0.95,
        share: bool = False,
    ) -> None:
        super().__init__(budget)
        for value, known in ((score, SCORES), (merge, MERGES)):
            if value not in known:
                raise ValueError(f"{value!r}: expected one of {', '.join(known)}")
        self.score, self.merge, self.threshold, self.share = score, merge, threshold, share

    @override
    def settings(self) -> dict[str, Any]:
        names = ("score", "merge", "threshold", "share")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    @override
    def check(self, slot_tokens: int, slots: int) -> None:
        super().check(slot_tokens, slots)
        if self.budget <= slots:
            raise ValueError(
                f"memory {self.name!r}: a budget of {self.budget} tokens is below one for each of the {slots} slots of "
                f"a clip and one more; give at least {slots + 1}"
            )

    @override
    def _take(self, past: KeyValues, reader: Reader, clip: Tokens) -> None:
        slots = split_slots(clip if self.threshold is None else filter_slots(clip, self.threshold))
        for number, slot in enumerate(slots, self._seen):
            reader.read_slot(past, slot, number)
        candidates = (past.kind == VIDEO) | (past.kind == PROTOTYPE)  # [L,n]
        if past.count(VIDEO, PROTOTYPE) <= self.budget:
            return
        attention = self._attention(past, reader, candidates)  # [L,n]
        merged = self._prototypes(past, attention, range(self._seen, self._seen + len(slots)))
        count = self.budget - (0 if merged is None else len(slots))
        layers = range(len(candidates))
        ranked = torch.stack([self._ranked(past, layer, attention[layer], candidates[layer]) for layer in layers])
        if self.share:
            ranked = ranked.mean(0).expand_as(ranked)
        labels = past.slot[0][past.kind[0] == LABEL].unique()[-LABELED_SLOTS:]
        text = (past.kind == TEXT) | (past.kind == LABEL) & torch.isin(past.slot, labels)  # [L,n]
        kept = [
            torch.cat([text[layer].nonzero()[:, 0], self._chosen(ranked[layer], candidates[layer], count)])
            for layer in layers
        ]
        past.keep(torch.stack(kept).sort(1).values)
        if merged is not None:
            past.insert(*merged)

    def _attention(self, past: KeyValues, reader: Reader, candidates: Tensor) -> Tensor:
        probe = past.fork()
        with watch_queries(probe.language_model) as queries:
            reader.read_text(probe, user_prompt("?").partition("?")[2], TEXT)
        own = zip(queries, past.cache.layers, candidates, strict=True)
        return torch.stack([saliency(rows, layer.keys[0], chosen) for rows, layer, chosen in own])

    def _ranked(self, past: KeyValues, layer: int, attention: Tensor, candidates: Tensor) -> Tensor:
        """What entries of a layer are chosen by, float32 [n]."""
        if self.score == "attention":
            return attention
        if self.score == "mix":
            deep = layer / max(1, len(past.positions) - 1)
            recency = past.slot[layer].clamp_min(0) / past.slot[layer].max().clamp_min(1)
            return deep * attention / attention.max().clamp_min(1e-12) + (1 - deep) * recency
        changed = torch.full_like(attention, -torch.inf)
        slot, place = past.slot[layer][candidates], past.place[layer][candidates]
        changed[candidates] = change_of_keys(past.keys(layer)[:, candidates], slot, place)
        first = best(changed, (self.budget + 1) // 2)  # the half that changes; the rest by their values
        lengths = past.cache.layers[layer].values[0].float().norm(dim=-1).mean(0)  # [n]
        lengths[first] = torch.inf
        return lengths

    def _chosen(self, scores: Tensor, candidates: Tensor, count: int) -> Tensor:
        places = candidates.nonzero()[:, 0]
        return places[best(scores[candidates], count)]

    def _prototypes(self, past: KeyValues, attention: Tensor, numbers: range) -> Prototypes | None:
        """Keys, values [L,H,m,d], positions, slots int64 [L,m] and axes [3,L,m] of one entry for each new slot."""
        if self.merge == "none":
            return None
        keys, values, firsts = [], [], []
        for number in numbers:
            own = ((past.slot == number) & (past.kind == VIDEO)).nonzero()[:, 1].view(len(attention), -1)  # [L,N]
            weights = attention.gather(1, own)
            total = weights.sum(1, keepdim=True)
            uniform = torch.full_like(weights, 1 / weights.shape[1])
            weights = uniform if self.merge == "mean" else torch.where(total > 0, weights / total, uniform)
            keys.append(_weighted(past, "keys", own, weights))
            values.append(_weighted(past, "values", own, weights))
            firsts.append(own[:, :1])
        first = torch.cat(firsts, 1)  # [L,m]
        slots = torch.tensor(numbers, device=past.slot.device).expand(len(attention), -1)
        axes = None if past.axes is None else past.axes.gather(2, first.expand(3, -1, -1))
        return torch.stack(keys, 2), torch.stack(values, 2), past.positions.gather(1, first), slots, axes


def _weighted(past: KeyValues, name: str, own: Tensor, weights: Tensor) -> Tensor:
    """Mean of some entries of each layer, [L,N] of them, weighted: [L,H,d] in the cache's type."""
    means = []
    for layer, index, weight in zip(past.cache.layers, own, weights, strict=True):
        entries = getattr(layer, name)[0]  # [H,n,d]
        means.append((entries[:, index].float() * weight[:, None]).sum(1).to(entries.dtype))
    return torch.stack(means)
