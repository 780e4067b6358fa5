"""Memories of clips that the question chooses (VideoStreaming, arXiv 2405.16009), learned from the answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from liteframe.align.batch import ChatBatch, answer_positions
from liteframe.align.clip_choice import (
    ClippedVideo,
    Span,
    clips_of_span,
    cut_video,
    divergence,
    draw_clips,
    gumbel,
    read_clips,
)  # fmt: skip
from liteframe.align.conversation_rows import Conversation
from liteframe.align.media import MediaKey
from liteframe.align.objectives import AllReduce
from liteframe.align.objectives.memory import MemoryTuning
from liteframe.align.objectives.sft import answer_loss, features_of, zero_of
from liteframe.models.vlm.attention import FULL
from liteframe.models.vlm.chat import IGNORE, IMAGE, PLACEHOLDER, encode_conversation
from liteframe.models.vlm.clip_summarizer import MEMORY, ClipSummarizer
from liteframe.models.vlm.placeholders import place_features
from liteframe.models.vlm.processor import LiteFrameProcessor, slot_times
from liteframe.models.vlm.trained_memory import part_of


class Choice(NamedTuple):
    """Which clips of a video are shown, ascending, and what each memory [N,D] is multiplied by."""

    clips: list[int]
    mask: Tensor


class ClipTuning(MemoryTuning):
    """The loss of SupervisedFineTuning on memories of clips, and how far the choice is from where answers are seen.

    A row's divergence counts as often as it has answer tokens, so both terms are means over these.

    Args:
        settings: ClipSettings.
        processor: of the Video LLM.
    """

    memory = MEMORY
    keys = frozenset({"span"})

    def __init__(self, settings: Any, processor: LiteFrameProcessor) -> None:
        super().__init__(settings, processor)
        self._figures: list[Tensor] = []  # of rows with a span: divergence, 1, and whether a clip of it was shown

    @override
    def begin(self, model: PeftModel, start_from: str | None, conversations: Sequence[Conversation]) -> None:
        for number, conversation in enumerate(conversations, 1):
            if conversation.videos > 1:
                raise ValueError(
                    f"number {number} of the conversations has {conversation.videos} videos, and "
                    f"model.{self.memory} reads one as a stream; make rows of one each"
                )
        self.spans = [checked_span(number, conversation) for number, conversation in enumerate(conversations, 1)]
        if self.settings.kl_warmup and not any(self.spans):
            raise ValueError(
                f"model.{self.memory}.kl_warmup is {self.settings.kl_warmup}, and no conversation says where its "
                "answer is to be seen; give rows a `span` of [start, end] in seconds, or leave it out"
            )
        super().begin(model, start_from, conversations)

    @override
    def describe(self, model: PeftModel) -> str:
        several = sum(sum(turn.role == "user" for turn in c.turns) > 1 for c in self.conversations)
        lines = [
            super().describe(model),
            f"{sum(map(bool, self.spans)):,} of {len(self.spans):,} conversations say where their answer is to be seen",
            f"{several:,} have several questions, of which the one that shows the video chooses" if several else "",
        ]
        return "\n".join(filter(None, lines))

    @override
    def room(self, limit: int, frames: Sequence[int], device: torch.device) -> tuple[list[int], int, str]:
        clip = (self.settings.slots_per_clip + 2) * self.processor.tokens_per_slot(*self.processor.frame_size)
        if clip > limit:
            raise ValueError(
                f"model.{self.memory}.slots_per_clip={self.settings.slots_per_clip}: a clip and two memories take "
                f"{clip} tokens, of {limit} that the language model reads"
            )
        shown = self.settings.chosen + self.settings.newest
        longer = 2 * shown * len(str(max(frames)))  # labels of late clips
        frames = [min(max(frames), shown * self.processor.frames_per_slot)]
        return frames, limit - longer, f"the language model reads beside {longer} of the labels' numbers"

    @override
    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of the answers and of the choices, and the answers' logits [B,K,vocabulary]; see Objective."""
        base = model.get_base_model()  # type: ignore[operator]
        features = features_of(inputs)
        media = iter(map(self._medium, batch.media_keys, batch.media_seconds, features))
        shown = [[next(media) for _ in range(count)] for count in batch.media_counts]
        numbers = [index for _, index in batch.keys]
        scores = self._scores(base, numbers, shown)
        choices = {row: self._choice(score) for row, score in scores.items()}
        ids, labels, placed, counts = self._rows(numbers, shown, choices)
        answers = answer_positions(labels)
        device = batch.input_ids.device
        embeddings = place_features(
            base.get_input_embeddings()(ids.to(device)), ids, self.processor.image_token_id, placed, counts
        )  # [B,L,D]
        warming_up = self.progress < self.settings.kl_warmup
        with torch.no_grad() if warming_up else nullcontext():
            read = {"inputs_embeds": embeddings, "attention_mask": {FULL: None}, "use_cache": False}
            logits = model(**read, logits_to_keep=answers.to(device)).logits
            loss = answer_loss(logits, labels.to(device), answers.to(device))
        self._losses.append(loss._replace(total=loss.total.detach()))
        total = loss.total * (not warming_up)
        tokens = (labels[:, 1:] != IGNORE).sum(1).tolist()
        for row, score in scores.items():
            if (span := self.spans[numbers[row]]) and self.settings.kl_weight:
                (video,) = (medium for medium in shown[row] if isinstance(medium, ClippedVideo))
                target = clips_of_span(video.times, span)
                apart = divergence(score, target)
                seen = float(not {*choices[row].clips}.isdisjoint(target))
                self._figures.append(torch.tensor([float(apart.detach()), 1.0, seen], dtype=torch.float64))
                total = total + self.settings.kl_weight * tokens[row] * apart
        # Ranks wait for all gradients, also where there was nothing to choose.
        return total + zero_of(p for p in model.parameters() if p.requires_grad), logits

    @override
    def normalize(self, parameters: Sequence[Tensor], micro_batches: int, all_reduce: AllReduce) -> dict[str, float]:
        figures = super().normalize(parameters, micro_batches, all_reduce)
        none = torch.zeros(3, dtype=torch.float64)
        apart, rows, seen = all_reduce(torch.stack([none, *self._figures]).sum(0).to(parameters[0].device)).tolist()
        self._figures.clear()
        return {**figures, "train/selection_kl": apart / rows, "train/selection_hits": seen / rows} if rows else figures

    def _medium(self, key: MediaKey, seconds: Sequence[float] | None, features: Tensor) -> ClippedVideo | Tensor:
        """A video as clips; an image, which has no frames by number, as it is."""
        frames = len(key[1])
        if not frames:
            return features
        slots = self.processor.slots(frames, *self.processor.frame_size)
        times = slot_times(slots, range(frames) if seconds is None else seconds)
        assert times is not None
        return cut_video(features, slots, times, self.settings.slots_per_clip)

    def _embed(self, base: Any, text: str) -> Tensor:
        """What the language model reads for a text, [n,D]."""
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return base.get_input_embeddings()(torch.tensor(ids, dtype=torch.long, device=base.device))

    def _scores(self, base: Any, numbers: Sequence[int], shown: Sequence[Sequence[Any]]) -> dict[int, Tensor]:
        """By row with a video, how much its question is about each clip [K], once all are read."""
        videos = {row: one for row, media in enumerate(shown) for one in media if isinstance(one, ClippedVideo)}
        if not videos:
            return {}
        summarizer: ClipSummarizer = part_of(base)
        embed = partial(self._embed, base)
        read_clips(summarizer, list(videos.values()), embed)
        rows = []
        for row, video in videos.items():
            words = embed(question_of(self.conversations[numbers[row]]))
            past = [video.memories[-1]] if self.settings.propagate else []
            rows.append(torch.cat([*past, words.to(video.memories[-1].dtype)]))
        asked = summarizer.questions(rows)  # [B,D]
        keys = [torch.stack(video.keys) for video in videos.values()]
        return {
            row: F.cosine_similarity(one.float(), key.float(), dim=-1) / self.settings.temperature
            for row, one, key in zip(videos, asked, keys, strict=True)
        }

    def _choice(self, scores: Tensor) -> Choice:
        """The clips that are shown, given scores [K]."""
        others = max(0, len(scores) - self.settings.newest)
        chosen, mask = list(range(others)), torch.ones_like(scores[:others])
        if others > self.settings.chosen:
            chosen, mask = draw_clips(scores[:others], self.settings.chosen, gumbel(others))
        newest = range(others, len(scores))
        return Choice([*chosen, *newest], torch.cat([mask[chosen], torch.ones_like(scores[others:])]))

    def _rows(
        self, numbers: Sequence[int], shown: Sequence[Sequence[Any]], choices: dict[int, Choice]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[int]]:
        """Ids and labels [B,L] of rows that show chosen memories, what is shown [n,D], and how much in each row."""
        image = self.processor.image_text(self.processor.tokens_per_slot(*self.processor.frame_size))
        ids, labels, placed, counts = list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
        for row, media in enumerate(shown):
            texts, features = list[str](), list[Tensor]()
            for medium in media:
                if isinstance(medium, ClippedVideo):
                    clips, mask = choices[row]
                    lines, times = [medium.lines[clip] for clip in clips], [medium.times[clip] for clip in clips]
                    memories = torch.stack([medium.memories[clip] for clip in clips]) * mask[:, None, None]
                    texts.append(self.processor.video_text(lines, times))
                    features.append(torch.cat([memories.flatten(0, 1), medium.end.to(memories.dtype)]))
                else:
                    texts.append(image)
                    features.append(medium)
            turns = self.conversations[numbers[row]].turns
            own, learned = encode_conversation(turns, texts, self.processor.tokenizer)
            ids.append(torch.tensor(own))
            labels.append(torch.tensor(learned))
            placed += features
            counts.append(sum(map(len, features)))
        padding = self.processor.tokenizer.pad_token_id
        padded = pad_sequence(ids, batch_first=True, padding_value=padding)
        return padded, pad_sequence(labels, batch_first=True, padding_value=IGNORE), placed, counts


def question_of(conversation: Conversation) -> str:
    """What a session would be asked: the words of the turn that shows the video."""
    text = next(turn.text for turn in conversation.turns if PLACEHOLDER in turn.text)
    return text.replace(PLACEHOLDER, "").replace(IMAGE, "").strip()


def checked_span(number: int, conversation: Conversation) -> Span | None:
    """Seconds of the video in which the answer of a conversation is to be seen, if its row says so.

    Args:
        number: of the row, from 1 on, for messages.
        conversation: of the row.

    Raises:
        ValueError: that is no span of seconds, or there is no video.
    """
    span = conversation.span
    if span is None:
        return None
    seconds = isinstance(span, list) and len(span) == 2 and all(type(one) in (int, float) for one in span)
    if not (seconds and conversation.videos and 0 <= span[0] <= span[1] < math.inf):
        raise ValueError(
            f"number {number} of the conversations: 'span' is {span!r}; it must be [start, end], the seconds of its "
            "video in which the answer is to be seen"
        )
    return float(span[0]), float(span[1])
