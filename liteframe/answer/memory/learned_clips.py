"""Memories of clips that a summarizer was trained to write, and to choose from (VideoStreaming, arXiv 2405.16009)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from liteframe.answer.memory.clips import Clip, ClipMemories
from liteframe.answer.memory.segments import mean_slot
from liteframe.answer.reader import Reader
from liteframe.models.vlm.clip_summarizer import MEMORY, ClipSettings, ClipSummarizer, time_text
from liteframe.models.vlm.trained_memory import part_of
from liteframe.reduce.base import Tokens, join_tokens


class LearnedClips(ClipMemories):
    """What a summarizer makes of each clip behind its memory of the one before; a question is shown those it is about.

    Where the budget is full, the two neighboring clips that are most alike become one.

    Args:
        budget: tokens that are kept at most.
        chosen: clips that a question chooses; None as in training.
        newest: clips that are shown whatever is asked, with the one that is not complete yet; None as in training.

    Raises:
        ValueError: a number is out of range.
    """

    name = MEMORY
    trained = True

    def __init__(self, budget: int, chosen: int | None = None, newest: int | None = None) -> None:
        usual = ClipSettings()
        self._as_trained = {
            name: given is None for name, given in (("chosen", chosen), ("newest", newest), ("slots_per_clip", None))
        }
        super().__init__(
            budget,
            chosen=usual.chosen if chosen is None else chosen,
            newest=usual.newest if newest is None else newest,
            selector="last",  # until a session tells of the summarizer
        )
        self._history: Tensor | None = None  # memory of the last clip that is complete, [N,D]

    @override
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("budget", "slots_per_clip", "chosen", "newest")}

    @override
    def start(self, reader: Reader) -> None:
        super().start(reader)
        for name, as_trained in self._as_trained.items():
            if as_trained:
                setattr(self, name, getattr(self._summarizer.settings, name))

    @property
    def _summarizer(self) -> ClipSummarizer:
        summarizer: ClipSummarizer = part_of(self.reader.model)
        return summarizer

    @override
    def _keep(self, slots: list[Tokens]) -> None:
        super()._keep(slots)
        self._history = self._clips[-1].tokens.tokens

    @override
    def _closed(self, slots: list[Tokens], always_shown: bool = False) -> Clip:
        mean = mean_slot(slots)
        assert mean.times is not None  # a session tells them
        spans = [clip.tokens.times[0] for clip in self._clips if clip.tokens.times] + [mean.times[0]]
        start = spans[0][0]
        past = spans[-2][1] - start if self._past else None
        begin, end = (time - start for time in spans[-1])
        before = torch.cat([self._embedded(time_text(past, begin, end)), *self._past])
        memories, keys = self._summarizer.clips([before], [join_tokens(slots).tokens], [mean.tokens])
        return Clip(replace(mean, tokens=memories[0].to(mean.tokens.dtype)), keys[0])

    @property
    def _past(self) -> list[Tensor]:
        """The memory that a clip is read behind, if it is behind one."""
        return [self._history] if self._history is not None and self._summarizer.settings.propagate else []

    def _embedded(self, text: str) -> Tensor:
        return self.reader.embed(self.reader.ids(text), None)[0]  # [n,D]

    @override
    def _merged(self, clips: list[Clip]) -> Clip:
        sizes = torch.stack([clip.tokens.size[0] for clip in clips])
        weights = (sizes / sizes.sum()).to(clips[0].key.device)[:, None]
        key = (torch.stack([clip.key.float() for clip in clips]) * weights).sum(0)
        return Clip(super()._merged(clips).tokens, key.to(clips[0].key.dtype))

    @override
    def _scores(self, question: str, clips: list[Clip], count: int) -> Tensor:
        past = [clips[-1].tokens.tokens] if self._past and self._open else self._past
        row = torch.cat([*past, self._embedded(question)])
        asked = self._summarizer.questions([row])  # [1,D]
        keys = torch.stack([clip.key for clip in clips[:count]])
        return F.cosine_similarity(asked.float(), keys.float(), dim=-1)

    @override
    def state(self) -> dict[str, Tensor]:
        return super().state() | ({} if self._history is None else {"history": self._history})

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        history = state.get("history")
        self._history = None if history is None else history.to(state["tokens"].device)
