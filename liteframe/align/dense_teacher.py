"""A Video LLM as it was before it got a LiteFrame encoder, as a teacher of itself: its own tower, on dense frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from liteframe.align.batch import ChatBatch
from liteframe.align.conversation_rows import Conversation
from liteframe.data.video.sampling import uniform
from liteframe.models.vlm.chat import IGNORE, encode_conversation
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.placeholders import place_features
from liteframe.models.vlm.processor import grid_slots, slot_times

FRAMES_PER_FORWARD = 32  # that the tower takes at once: bounds the memory a long video needs


@dataclass
class DistillationSettings:
    """The Video LLM's own next-token distribution as a soft target beside the labels.

    Attributes:
        weight: of the soft target; 0 does without.
        frames: that the teacher sees of a video at most, spread evenly over those that are shown.
    """

    weight: float = 0.0
    frames: int = 32

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        if self.weight < 0 or self.frames < 1:
            raise ValueError(f"distillation: weight >= 0 and frames >= 1 are needed, got {self}")


class DenseTeacher:
    """What the Video LLM says of a conversation without the adapter and without the encoder.

    Its language model and projector are those of the model that is trained, with LoRA switched off; its tower is its
    own. It sees the frames that the batch shows, resized by its own processor.

    Args:
        vlm: transformers' model, whose language model the trained one shares.
        processor: transformers' own.
        adapted: the trained model.
        conversations: by the index of their keys.
        frames: see DistillationSettings.
    """

    def __init__(
        self,
        vlm: PreTrainedModel,
        processor: Any,
        adapted: PeftModel,
        conversations: Sequence[Conversation],
        frames: int,
    ):
        self.vlm, self.processor, self.adapted = vlm, processor, adapted
        self.conversations, self.frames = conversations, frames
        self.family = family_of(vlm.config.model_type)
        self.placeholder = self.family.video_token_id(vlm.config)
        self.mrope = None if self.family.mrope is None else self.family.mrope(vlm.config)
        self.limit = vlm.config.get_text_config().max_position_embeddings

    @torch.no_grad()
    def __call__(self, batch: ChatBatch) -> list[Tensor | None]:
        """Log-probabilities [n,vocabulary] at the n answer tokens of each conversation; None for those with images.

        Raises:
            ValueError: a conversation is longer than the language model reads.
        """
        frames = [] if batch.shown is None else batch.shown  # of texts alone, none
        shown = iter(frames if isinstance(frames, list) else frames.split(batch.video_frames))
        seconds = iter(batch.media_seconds)
        said: list[Tensor | None] = []
        for (_, index), count in zip(batch.keys, batch.media_counts, strict=True):
            videos = list(zip(islice(shown, count), islice(seconds, count), strict=True))
            images = any(medium.kind == "image" for medium in self.conversations[index].media)
            said.append(None if images else self._read(self.conversations[index], videos, batch.input_ids.device))
        return said

    def _read(
        self, conversation: Conversation, videos: Sequence[tuple[Tensor, list[float] | None]], device: torch.device
    ) -> Tensor:
        features, texts, places = [], [], [torch.empty(4, 0, dtype=torch.long)]
        for frames, seconds in videos:
            count = len(frames)
            chosen = list(range(count)) if count <= self.frames else uniform(count, self.frames)
            pixels = self.family.prepare_frames(self.processor.video_processor, frames[chosen].to(device))
            tokens = self._encode(pixels)  # [S,N,D]
            slots = grid_slots(len(chosen), self.family.temporal_patch, tokens.shape[1])
            times = slot_times(slots, None if seconds is None else [seconds[place] for place in chosen])
            texts.append(self.family.video_text(self.processor, slots, times))
            end = self.family.end_embedding(self.vlm)
            features += [tokens.flatten(0, 1), *([] if end is None else [end])]
            if self.mrope is not None:
                side = self.vlm.config.vision_config.patch_size * self.family.merge_factor(self.vlm.config)
                shape = (pixels.shape[2] // side, pixels.shape[3] // side)
                places.append(self.mrope.places(slots, shape, times))
        encoded = encode_conversation(conversation.turns, texts, self.processor.tokenizer)
        ids, labels = map(torch.tensor, encoded)  # [L]
        if len(ids) > self.limit:
            raise ValueError(
                f"model.distillation.frames={self.frames}: a conversation takes {len(ids):,} tokens of the "
                f"{self.limit:,} that the language model reads; use fewer frames"
            )
        embeddings = self.vlm.get_input_embeddings()(ids[None].to(device))
        embeddings = place_features(embeddings, ids[None], self.placeholder, features)  # [1,L,D]
        positions = None
        if self.mrope is not None:
            positions = self.mrope.position_ids(ids == self.placeholder, torch.cat(places, 1))[:, None].to(device)
        parts = self.family.parts(self.vlm)
        with self.adapted.disable_adapter():
            hidden = parts.language_model(
                inputs_embeds=embeddings, position_ids=positions, use_cache=False
            ).last_hidden_state  # [1,L,D]
            before = (labels[1:] != IGNORE).nonzero().squeeze(1).to(device)
            return parts.head(hidden[0, before]).float().log_softmax(-1)

    def _encode(self, pixels: Tensor) -> Tensor:
        """[T,3,h,w] -> [S,N,D] by the tower and the projector as they were."""
        tower = self.family.parts(self.vlm).tower
        if next(tower.parameters()).device != pixels.device:
            self.vlm.to(pixels.device)
        encode = self.family.encode_frames
        return torch.cat([encode(self.vlm, part) for part in pixels.split(FRAMES_PER_FORWARD)])
