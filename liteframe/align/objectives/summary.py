"""Summary tokens (Video-XL, arXiv 2409.14485): answers are learned from summaries of a video, all in one pass."""

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.align.batch import ChatBatch, answer_positions
from liteframe.align.objectives.memory import MemoryTuning
from liteframe.align.objectives.sft import answer_loss, embeddings_of, features_of, zero_of
from liteframe.models.vlm.attention import FULL
from liteframe.models.vlm.chat import IGNORE
from liteframe.models.vlm.one_pass import LARGEST_DENSE, Segment, block_mask, dense_mask, lay_out, rearranged
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.summary_tokens import MEMORY, SummarySettings, summary_tokens_of
from liteframe.reduce.segmenter import DYNAMIC, Ratio, Segmenter, check_segments

RAW_END = 0.5  # share of videos whose last segment is not summarized, as that of a stream that goes on


class SummaryTuning(MemoryTuning):
    """The loss of SupervisedFineTuning on conversations whose videos are summarized segment by segment.

    One forward with a mask, equal to reading segment by segment and forgetting. Images stay as they are.

    Args:
        settings: of the summary tokens.
        processor: of the Video LLM.

    Raises:
        ValueError: segments are too long, or the language model counts positions on three axes.
    """

    memory = MEMORY

    def __init__(self, settings: SummarySettings, processor: LiteFrameProcessor) -> None:
        super().__init__(settings, processor)
        check_segments(settings.segments)
        text = processor.video_text([(0, processor.frames_per_slot - 1, 1)])
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [place for place, token in enumerate(ids) if token == processor.image_token_id]
        self._ends = len(places) - 1  # features that end a video
        self._before, self._behind = places[0], len(ids) - 1 - places[-1]  # tokens of a slot's line around its features

    @override
    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of the answers, and their logits [B,K,vocabulary]; see Objective.

        Waits for the device: where segments end may depend on features.
        """
        base = model.get_base_model()  # type: ignore[operator]
        summary = summary_tokens_of(base)
        assert summary is not None
        features = features_of(inputs)
        embeddings = embeddings_of(base, batch, features)  # [B,L,D]
        layout = lay_out(self._rows(batch, features))
        labels = rearranged(batch.labels.cpu(), torch.tensor(IGNORE), layout.source)  # [B,L']
        answers = answer_positions(labels)
        layout, labels, answers = (
            layout.to(embeddings.device),
            labels.to(embeddings.device),
            answers.to(embeddings.device),
        )
        flex = embeddings.device.type == "cuda"
        # Both stay so until the next batch: activations that are checkpointed are computed again on the way back.
        base.model.language_model.config._attn_implementation = "flex_attention" if flex else "sdpa"
        summary.places = layout.rows, layout.columns
        logits = model(
            inputs_embeds=rearranged(embeddings, summary.embedding, layout.source),
            attention_mask={FULL: block_mask(layout) if flex else dense_mask(layout)},
            logits_to_keep=answers,
            use_cache=False,
        ).logits
        loss = answer_loss(logits, labels, answers)
        self._losses.append(loss._replace(total=loss.total.detach()))
        return loss.total + zero_of(summary.parameters()), logits  # also where nothing was summarized

    @override
    def room(self, limit: int, frames: Sequence[int], device: torch.device) -> tuple[Sequence[int], int, str]:
        slots, ratios = ceil(max(frames) / self.processor.frames_per_slot), self.settings.ratios
        tokens = slots * self.processor.tokens_per_slot(*self.processor.frame_size)
        ratio = min(DYNAMIC) if ratios == "dynamic" else min(map(min, ratios))
        most = tokens // ratio + slots  # what is left at the end of a segment has one of its own
        reason = "the language model reads"
        if device.type != "cuda" and limit > LARGEST_DENSE:
            limit, reason = LARGEST_DENSE, "a mask of all pairs, which a CPU needs, has room for"
        return frames, limit - most, f"{reason} beside {most} summary tokens"

    def _rows(self, batch: ChatBatch, features: Sequence[Tensor]) -> list[tuple[int, list[Segment]]]:
        media = iter(zip(batch.media_keys, features, strict=True))
        rows = []
        for ids, count in zip(batch.input_ids.tolist(), batch.media_counts, strict=True):
            columns = [column for column, token in enumerate(ids) if token == self.processor.image_token_id]
            segments = list[Segment]()
            for (_, frames), tokens in (next(media) for _ in range(count)):
                own, columns = columns[: len(tokens)], columns[len(tokens) :]
                if frames:  # an image has none by number
                    segments += self.segments(own, len(frames), tokens)
            rows.append((len(ids), segments))
        return rows

    def segments(self, columns: Sequence[int], frames: int, features: Tensor, raw: bool | None = None) -> list[Segment]:
        """Segments of a video that are summarized.

        Args:
            columns: of its placeholders in the row.
            frames: how many it has.
            features: [N,D], what the language model reads in the placeholders' places.
            raw: whether the last segment stays as it is; None draws that.
        """
        slots = ceil(frames / self.processor.frames_per_slot)
        count = (len(columns) - self._ends) // slots  # tokens of a slot
        globs = features[: slots * count].detach().float().unflatten(0, (slots, count)).mean(1).cpu()  # [S,D]
        ratio: Ratio | Callable[[], int] = "dynamic" if self.settings.ratios == "dynamic" else self._draw
        segmenter = Segmenter(self.settings.segments, ratio)
        ended = [segment for glob in globs if (segment := segmenter.add(glob)) is not None]
        if (rest := segmenter.rest()) is not None:
            ended.append(rest)
        raw = bool(torch.rand(()) < RAW_END) if raw is None else raw
        found, first = [], 0
        for number, own_ratio in ended[: len(ended) - raw]:
            video = columns[first * count : (first + number) * count]
            labels = self._labels(columns, first * count, video) if self.settings.labels == "drop" else []
            found.append(Segment(video, labels, own_ratio))
            first += number
        return found

    def _draw(self) -> int:
        stages = self.settings.ratios
        choices = stages[min(int(self.progress * len(stages)), len(stages) - 1)]
        return int(choices[int(torch.randint(len(choices), ()))])

    def _labels(self, columns: Sequence[int], start: int, video: Sequence[int]) -> list[int]:
        """Columns of the text in the lines of a segment's slots, whose tokens are `columns` from `start` on."""
        begin = columns[start - 1] + self._behind + 1 if start else columns[0] - self._before
        return sorted({*range(begin, video[-1] + self._behind + 1)}.difference(video))
