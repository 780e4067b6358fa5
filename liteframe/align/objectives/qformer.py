"""A Q-Former with two banks (MA-LMM, arXiv 2404.05726): answers are learned from what it makes of a video."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from liteframe.align.batch import ChatBatch
from liteframe.align.objectives.memory import MemoryTuning
from liteframe.align.objectives.sft import zero_of
from liteframe.models.vlm.processor import LiteFrameProcessor, grid_slots
from liteframe.models.vlm.qformer import MEMORY, QFormerSettings
from liteframe.models.vlm.trained_memory import part_of
from liteframe.reduce.qformer_banks import read_video


class QFormerTuning(MemoryTuning):
    """The loss of SupervisedFineTuning on conversations in which a Q-Former's tokens stand for each video.

    A video is read slot by slot as a session reads it; the banks have no gradients. Images stay as they are.

    Args:
        settings: of the Q-Former.
        processor: of the Video LLM.

    Raises:
        ValueError: the language model counts positions on three axes.
    """

    memory = MEMORY

    def __init__(self, settings: QFormerSettings, processor: LiteFrameProcessor) -> None:
        super().__init__(settings, processor)
        self.processor = copy.copy(processor)
        self.processor.tokens_per_video = settings.queries

    @override
    def loss(self, model: nn.Module, inputs: dict[str, Any], batch: ChatBatch) -> tuple[Tensor, Tensor]:
        """Summed loss of the answers, and their logits [B,K,vocabulary]; see Objective."""
        base = model.get_base_model()  # type: ignore[operator]
        former = part_of(base)
        if "mm_encoder_outputs" in inputs:
            features = inputs["mm_encoder_outputs"]["video"].pooler_output
            shown = self._shown(former, features, batch, base.model.end_embedding() is not None)
            inputs = {**inputs, "mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=shown)}}
        loss, logits = super().loss(model, inputs, batch)
        return loss + zero_of(former.parameters()), logits  # a batch may have no video

    @override
    def room(self, limit: int, frames: Sequence[int], device: torch.device) -> tuple[Sequence[int], int, str]:
        return frames, limit, "the language model reads"

    def _shown(self, former: Any, features: list[Tensor], batch: ChatBatch, ended: bool) -> list[Tensor]:
        """What the language model reads of each medium, its features [N,D] given; `ended`: the last ends a video."""
        groups = defaultdict[tuple[int, int, int], list[int]](list)  # that are read side by side
        for number, (_, frames) in enumerate(batch.media_keys):
            if frames:  # an image has none by number
                slots = ceil(len(frames) / self.processor.frames_per_slot)
                length = self.settings.lengths[int(torch.randint(len(self.settings.lengths), ()))]
                tokens = (len(features[number]) - ended) // slots
                groups[slots, tokens, min(length, slots)].append(number)
        shown = list(features)
        for (slots, tokens, length), numbers in groups.items():
            spans = torch.stack([self._spans(batch, number) for number in numbers])  # [B,S,4]
            values = torch.stack([features[number][: slots * tokens] for number in numbers])
            values = values.unflatten(1, (slots, tokens))  # [B,S,N,D]
            made = read_video(former, values, spans.to(values.device), length)  # [B,q,D]
            for number, one in zip(numbers, made, strict=True):
                shown[number] = torch.cat([one, features[number][slots * tokens :]])
        return shown

    def _spans(self, batch: ChatBatch, number: int) -> Tensor:
        """First and last frame of each slot of a video and their seconds, float64 [S,4]."""
        frames, seconds = len(batch.media_keys[number][1]), batch.media_seconds[number]
        unknown = [float("nan")] * frames
        times = unknown if seconds is None else seconds
        slots = grid_slots(frames, self.processor.frames_per_slot, 1)
        rows = [(first, last, times[first], times[last]) for first, last, _ in slots]
        return torch.tensor(rows, dtype=torch.float64)
