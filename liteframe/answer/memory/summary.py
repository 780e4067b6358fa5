"""A KV cache of summary tokens, which the language model was trained to write (Video-XL, arXiv 2409.14485)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.answer.key_values import LABEL, PROTOTYPE, VIDEO, KeyValues
from liteframe.answer.memory.base import copied, split_slots, tokens_of_state, tokens_state
from liteframe.answer.memory.cache import CacheMemory
from liteframe.answer.reader import Reader
from liteframe.models.vlm.one_pass import SUMMARY, Segment, dense_mask, lay_out, rearranged, summarized
from liteframe.models.vlm.summary_tokens import MEMORY, SummaryTokens, summary_tokens_of
from liteframe.reduce.base import Tokens, join_tokens
from liteframe.reduce.segmenter import DYNAMIC, LONGEST, Ratio, Segmenter, Segments, check_ratio, check_segments

AHEAD = 2  # slots that are waited for behind a segment's end, where the video decides about it


class SummaryCache(CacheMemory):
    """Entries of summary tokens among the tokens of each segment, which are read once and forgotten.

    A segment is read when it ends; the slots since then stand in full behind all summaries when a question comes, as
    in training. Where the budget is full, the summaries of the oldest slots are forgotten.

    Args:
        budget: tokens that are kept at most, summaries and what is not summarized yet.
        segments: slots of a segment, or "changes"; None as the model was trained.
        ratio: tokens that a summary token stands for, or "dynamic"; None as the model was trained at last, with the
            most where it drew from several.

    Raises:
        ValueError: segments or ratio are out of range, or the budget is below 1.
    """

    name = MEMORY
    trained = True

    def __init__(self, budget: int, segments: Segments | None = None, ratio: Ratio | None = None) -> None:
        super().__init__(budget)
        if segments is not None:
            check_segments(segments)
        if ratio is not None:
            check_ratio(ratio)
        self.segments, self.ratio = segments, ratio
        self._open: list[Tokens] = []  # slots that are not summarized yet
        self._segmenter: Segmenter | None = None

    @override
    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "segments": self.segments, "ratio": self.ratio}

    def _new_segmenter(self) -> Segmenter:
        assert self.segments is not None  # `start` has said so
        assert self.ratio is not None
        return Segmenter(self.segments, self.ratio)

    @override
    def start(self, reader: Reader) -> None:
        if reader.lines.mrope is not None:
            raise ValueError(
                f"memory {self.name!r} numbers what it reads on one axis, and positions of a "
                f"{reader.model.config.model_type} have three; take another memory"
            )
        super().start(reader)
        trained = self._summary_tokens.settings
        if self.segments is None:
            self.segments = trained.segments
        if self.ratio is None:
            self.ratio = "dynamic" if trained.ratios == "dynamic" else max(trained.ratios[-1])

    @property
    def _summary_tokens(self) -> SummaryTokens:
        tokens = summary_tokens_of(self.reader.model)
        assert tokens is not None  # the session has checked
        return tokens

    @override
    def check(self, slot_tokens: int, slots: int) -> None:
        super().check(slot_tokens, slots)
        assert self.segments is not None
        most = LONGEST + AHEAD if self.segments == "changes" else self.segments
        ratio = min(DYNAMIC) if self.ratio == "dynamic" else self.ratio
        assert isinstance(ratio, int)
        needed = most * slot_tokens + len(summarized(most * slot_tokens, ratio))
        if self.budget < needed:
            raise ValueError(
                f"memory {self.name!r}: a budget of {self.budget} tokens is below {most} slots of {slot_tokens}, which "
                f"it holds before they are summarized, and their summaries; give at least {needed}"
            )

    @override
    def _take(self, past: KeyValues, reader: Reader, clip: Tokens) -> None:
        if self._segmenter is None:
            self._segmenter = self._new_segmenter()
        first = self._seen - len(self._open)  # number of the first open slot
        for slot in split_slots(clip):
            self._open.append(copied(slot))
            if (ended := self._segmenter.add(_mean(slot))) is not None:
                count, ratio = ended
                self._summarize(past, reader, self._open[:count], first, ratio)
                self._open, first = self._open[count:], first + count
            while past.count(PROTOTYPE) + self._open_tokens > self.budget:
                slots = past.slot[0]
                past.keep((slots != slots[slots >= 0].min()).nonzero()[:, 0])

    def _summarize(self, past: KeyValues, reader: Reader, slots: list[Tokens], first: int, ratio: int) -> None:
        """Read a segment whose first slot has this number in the stream, and forget all but what sums it up."""
        summary, ids, numbers = self._summary_tokens, list[int](), list[int]()
        for number, slot in enumerate(slots, first):
            line = reader.ids(reader.lines.line(slot, 0, number == 0))
            ids, numbers = ids + line, numbers + [number] * len(line)
        video = [column for column, token in enumerate(ids) if token == reader.lines.encoder.placeholder_id]
        labels = sorted({*range(len(ids))}.difference(video))
        forgotten = labels if summary.settings.labels == "drop" else []
        layout = lay_out([(len(ids), [Segment(video, forgotten, ratio)])])
        source, kinds = layout.source[0], torch.full((1, len(ids)), LABEL)
        kinds[0, video] = VIDEO
        kinds = rearranged(kinds, torch.tensor(PROTOTYPE), layout.source)[0]
        # A summary token belongs to the slot whose token is before it.
        owner = torch.tensor(numbers)[torch.where(source == SUMMARY, source.roll(1), source)]
        embeddings = reader.embed(ids, torch.cat([slot.tokens for slot in slots]))  # [1,L,D]
        layout = layout.to(embeddings.device)
        embeddings = rearranged(embeddings, summary.embedding, layout.source)  # [1,L',D]
        with summary.reading(layout.rows, layout.columns):
            past.read(embeddings, kinds, owner, sees=dense_mask(layout)[0, 0])
        gone = past.kind[0] == VIDEO
        if forgotten:
            gone |= past.kind[0] == LABEL
        past.keep((~gone).nonzero()[:, 0])

    @override
    def context(self, question: str) -> KeyValues | None:
        if self._past is None or not self._open:
            return self._past
        view = self._past.fork()
        for number, slot in enumerate(self._open, self._seen - len(self._open)):
            self.reader.read_slot(view, slot, number)
        return view

    @property
    def _open_tokens(self) -> int:
        return sum(len(slot.tokens) for slot in self._open)

    @property
    @override
    def tokens(self) -> int:
        return super().tokens + self._open_tokens

    @property
    @override
    def bytes(self) -> int:
        return super().bytes + sum(t.nbytes for name, t in self.state().items() if name.startswith("open."))

    @override
    def state(self) -> dict[str, Tensor]:
        state = super().state()
        if self._segmenter is not None:
            state["segmenter"] = self._segmenter.state()
        if self._open:
            state |= {f"open.{name}": tensor for name, tensor in tokens_state(join_tokens(self._open)).items()}
        return state

    @override
    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self._open, self._segmenter = [], None
        if not state:
            return
        held = {name.removeprefix("open."): tensor for name, tensor in state.items() if name.startswith("open.")}
        if held:
            held["tokens"] = held["tokens"].to(self.reader.model.device)
            self._open = [copied(slot) for slot in split_slots(tokens_of_state(held))]
        self._segmenter = self._new_segmenter()
        self._segmenter.load_state(state["segmenter"], [_mean(slot) for slot in self._open])

    @override
    def fork(self) -> Self:
        other = super().fork()
        other._open = list(self._open)
        other._segmenter = None if self._segmenter is None else self._segmenter.fork()
        return other


def _mean(tokens: Tokens) -> Tensor:
    return tokens.tokens.float().mean(0)  # [C]
