"""Summaries of clips, and for a question those that it is about: VideoStreaming (arXiv 2405.16009), untrained."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from liteframe.answer.key_values import VIDEO
from liteframe.answer.memory.base import StreamMemory, copied, split_slots, tokens_of_state, tokens_state
from liteframe.answer.memory.segments import mean_slot
from liteframe.answer.memory.select import by_attention, by_meaning, mean_keys
from liteframe.answer.reader import Reader
from liteframe.reduce.base import Tokens, join_tokens
from liteframe.reduce.scenes import StreamCutter
from liteframe.reduce.selection import newest_top

SELECTORS = ("attention", "embed", "last", "random")


@dataclass(frozen=True)
class Clip:
    """A clip: its tokens, and what selectors go by, [C] of `embed` and [l,H,d] of `attention`, else [0]."""

    tokens: Tokens
    key: Tensor


class ClipMemories(StreamMemory):
    """The mean of each clip's slots; a question is shown the clips that it is about, and the newest.

    Where the budget is full, the two neighboring clips that are most alike become one.

    Args:
        budget: tokens that are kept at most.
        slots_per_clip: slots that are a clip; 4 are 16 frames, as in the paper. None ends clips where the video
            changes, after 2 to 16 slots.
        chosen: clips that a question chooses.
        newest: clips that are shown whatever is asked, the one that is not complete yet among them.
        selector: how a question chooses: "attention" (its queries and the clips' keys in the language model's middle
            layers), "embed" (its mean embedding, a control), "last", or "random".
        pool: whether a clip is the mean of its slots; else it keeps all their tokens.
        seed: of "random".

    Raises:
        ValueError: there is no such selector, or a number is out of range.
    """

    name = "clips"
    budget: int

    def __init__(
        self,
        budget: int,
        slots_per_clip: int | None = 4,
        chosen: int = 4,
        newest: int = 1,
        selector: str = "attention",
        pool: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(budget)
        if selector not in SELECTORS:
            raise ValueError(f"selector={selector!r}: expected one of {', '.join(SELECTORS)}")
        if slots_per_clip == 0 or chosen < 0 or newest < 0 or chosen + newest < 1:
            raise ValueError(
                f"slots_per_clip={slots_per_clip}, chosen={chosen}, newest={newest}: clips have at least one slot, and "
                "at least one clip is shown"
            )
        self.slots_per_clip, self.chosen, self.newest, self.pool = slots_per_clip, chosen, newest, pool
        self.selector, self.seed = selector, seed
        self._clips: list[Clip] = []
        self._open: list[Tokens] = []  # slots that fill no clip yet
        self._cutter = StreamCutter() if slots_per_clip is None else None

    @override
    def settings(self) -> dict[str, Any]:
        names = ("slots_per_clip", "chosen", "newest", "selector", "pool", "seed")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    @override
    def check(self, slot_tokens: int, slots: int) -> None:
        most = self.slots_per_clip if self._cutter is None else self._cutter.longest + 2
        if most and self.budget < most * slot_tokens:
            raise ValueError(
                f"memory {self.name!r}: a budget of {self.budget} tokens is below {most} slots, which it holds before "
                f"a clip ends, and one slot of this model, which has {slot_tokens}; give at least {most * slot_tokens}"
            )

    @override
    def start(self, reader: Reader) -> None:
        if self.selector == "attention":
            reader.check_entries(f"memory {self.name!r} with selector='attention'", "selector='embed'")
        super().start(reader)

    @override
    def add(self, clip: Tokens) -> None:
        self.check(max(count for _, _, count in clip.slots), len(clip.slots))
        for slot in split_slots(clip):
            self._open.append(copied(slot))
            if (end := self._end()) is not None:
                self._keep(self._open[:end])
                self._open = self._open[end:]
            while self._held > self.budget:
                self._merge()

    def _end(self) -> int | None:
        """How many of the open slots are a clip now."""
        if self._cutter is not None:
            return self._cutter.add(_mean(self._open[-1]))
        return self.slots_per_clip if len(self._open) == self.slots_per_clip else None

    @property
    def _held(self) -> int:
        return sum(len(clip.tokens.tokens) for clip in self._clips) + sum(len(slot.tokens) for slot in self._open)

    def _keep(self, slots: list[Tokens]) -> None:
        """Remember a clip that is complete."""
        self._clips.append(self._closed(slots))

    def _closed(self, slots: list[Tokens], always_shown: bool = False) -> Clip:
        tokens = mean_slot(slots) if self.pool else join_tokens(slots)
        return Clip(tokens, torch.empty(0) if always_shown else self._key(tokens))

    def _key(self, tokens: Tokens) -> Tensor:
        if self.selector == "embed":
            return _mean(tokens)
        if self.selector != "attention":
            return torch.empty(0)
        reader = self.reader
        past = reader.begin()  # each clip is read by itself, so that what is read stays short
        for number, slot in enumerate(split_slots(tokens)):
            reader.read_slot(past, slot, number)
        return mean_keys(past, past.kind[0] == VIDEO)

    def _merge(self) -> None:
        first = 0
        if len(self._clips) > 1:
            means = torch.stack([_mean(clip.tokens) for clip in self._clips])  # [K,C]
            first = int(F.cosine_similarity(means[:-1], means[1:], dim=-1).argmax())
        self._clips[first : first + 2] = [self._merged(self._clips[first : first + 2])]

    def _merged(self, clips: list[Clip]) -> Clip:
        tokens = mean_slot([slot for clip in clips for slot in split_slots(clip.tokens)])
        return Clip(tokens, self._key(tokens))

    @override
    def context(self, question: str) -> Tokens | None:
        clips = [*self._clips, *([self._closed(self._open, bool(self.newest))] if self._open else [])]
        if not clips:
            return None
        always = range(max(0, len(clips) - self.newest), len(clips))
        others = len(clips) - len(always)
        if others > self.chosen:
            chosen = newest_top(self._scores(question, clips, others), self.chosen)
        else:
            chosen = list(range(others))
        return join_tokens([clips[number].tokens for number in (*chosen, *always)])

    def _scores(self, question: str, clips: list[Clip], count: int) -> Tensor:
        """How much a question is about each of the first `count` clips."""
        clips = clips[:count]
        if self.selector == "last":
            return torch.arange(count)
        if self.selector == "random":
            draws = [random.Random(f"{self.seed} {clip.tokens.slots[0][0]}").random() for clip in clips]
            return torch.tensor(draws)
        keys = torch.stack([clip.key for clip in clips])
        score = by_attention if self.selector == "attention" else by_meaning
        return score(self.reader, question, keys)

    @override
    def state(self) -> dict[str, Tensor]:
        held = [*(clip.tokens for clip in self._clips), *self._open]
        if not held:
            return {}
        counts = torch.tensor([len(clip.tokens.slots) for clip in self._clips], dtype=torch.long)
        state = {**tokens_state(join_tokens(held)), "slots_of_clips": counts}
        if self._cutter is not None:
            state["cuts"] = self._cutter.state()
        return {**state, "keys": torch.stack([clip.key for clip in self._clips])} if self._clips else state

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        self._clips, self._open = [], []
        self._cutter = StreamCutter() if self.slots_per_clip is None else None
        if not state:
            return
        slots = split_slots(tokens_of_state(state))
        for number, count in enumerate(state["slots_of_clips"].tolist()):
            key = state["keys"][number].to(state["tokens"].device)
            self._clips.append(Clip(copied(join_tokens(slots[:count])), key))
            slots = slots[count:]
        self._open = [copied(slot) for slot in slots]
        if self._cutter is not None:
            self._cutter.load_state(state["cuts"], [_mean(slot) for slot in self._open])

    @override
    def fork(self) -> Self:
        other = copy.copy(self)
        other._clips, other._open = list(self._clips), list(self._open)
        other._cutter = None if self._cutter is None else self._cutter.fork()
        return other


def _mean(tokens: Tokens) -> Tensor:
    return tokens.tokens.float().mean(0)  # [C]
