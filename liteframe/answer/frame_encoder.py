"""From frames to the tokens that a Video LLM's language model reads, and the text that stands around them.

Two ways behind one interface: a LiteFrame encoder sees clips, transformers' own towers see frames or pairs of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from liteframe.models.vlm.base import CLIPS_PER_FORWARD
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.processor import LiteFrameProcessor, Slot, Times, grid_slots
from liteframe.reduce.base import Tokens, join_tokens

FRAMES_PER_FORWARD = 32  # that transformers' tower takes at once: bounds the memory a long video needs


class FrameEncoder(ABC):
    """Encodes frames of one video, whole clips at a time.

    Attributes:
        clip_frames: frames that are encoded together; the borders between clips are those of offline encoding.
        most_frames: frames that one call should get at most.
        placeholder_id: token that stands for one feature.
        mrope: how the language model numbers vision tokens, where it does not count them like words.
        closing: what stands behind the last slot of a video whose slots are not parted.
    """

    clip_frames: int
    most_frames: int
    placeholder_id: int
    mrope: Mrope | None = None
    closing: str = ""

    @abstractmethod
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        """Frames [T,H,W,3] uint8 -> [T,3,h,w] uint8, as the model wants them; such frames stay as they are.

        Raises:
            ValueError: they are too elongated for a model that keeps their aspect ratio.
        """

    @abstractmethod
    def pixels(self, resized: Tensor) -> Tensor:
        """Frames [T,3,h,w] uint8 -> [T,3,h,w] on the model's device, where they come as bytes.

        Normalized there, or bytes still where the encoder normalizes them itself.
        """

    @abstractmethod
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        """Pixels [T,3,h,w], the first of which has this number in the video, -> tokens of their slots."""

    def encode(self, resized: Tensor, first_frame: int) -> Tokens:
        """Frames [T,3,h,w] uint8, the first of which has this number in the video, -> tokens of their slots."""
        return self.tokens(self.pixels(resized), first_frame)

    def whole(self, pixels: Tensor, ended: Callable[[str], object] = lambda stage: None) -> Tokens:
        """Pixels [T,3,h,w] of a whole video, of any length -> its tokens.

        Args:
            pixels: of `pixels`.
            ended: is told when a stage has ended: "projector", with the vision tower before it.
        """
        starts = range(0, len(pixels), self.most_frames)
        shown = join_tokens([self.tokens(pixels[start : start + self.most_frames], start) for start in starts])
        ended("projector")
        return shown

    @abstractmethod
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """What stands for a video in the prompt, see LiteFrameProcessor.video_text."""

    @abstractmethod
    def end_embedding(self) -> Tensor | None:
        """What ends a video for the language model [1,D], if anything does."""


class EncoderOnTop(FrameEncoder):
    """Stands on a model's own way, and leaves to it what it does not do in another."""

    def __init__(self, whole: FrameEncoder) -> None:
        self._whole = whole
        self.placeholder_id, self.mrope, self.closing = whole.placeholder_id, whole.mrope, whole.closing

    @override
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        return self._whole.resized(frames)

    @override
    def pixels(self, resized: Tensor) -> Tensor:
        return self._whole.pixels(resized)

    @override
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        return self._whole.video_text(slots, times)

    @override
    def end_embedding(self) -> Tensor | None:
        return self._whole.end_embedding()


def frame_encoder(model: Any, processor: Any) -> FrameEncoder:
    """The way of a Video LLM, with a LiteFrame encoder or without."""
    return (
        ClipEncoder(model, processor) if isinstance(processor, LiteFrameProcessor) else TowerEncoder(model, processor)
    )


class ClipEncoder(FrameEncoder):
    """The way of a Video LLM with a LiteFrame encoder."""

    def __init__(self, model: Any, processor: LiteFrameProcessor) -> None:
        self.model, self.processor = model, processor
        self.clip_frames: int = model.config.vision_config.encoder_config.clip_frames
        self.most_frames = CLIPS_PER_FORWARD * self.clip_frames
        self.placeholder_id: int = model.config.image_token_id
        self.mrope, self.closing = processor.mrope, processor.closing

    @override
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        return self.processor.resized(frames)

    @override
    def pixels(self, resized: Tensor) -> Tensor:
        return resized.to(self.model.device)

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        encode, first = self.model.model.get_video_features, first_frame == 0
        features = encode(pixels, final=False, first=first).pooler_output[0]  # [S*N,D]
        size = pixels.shape[-2:]
        return slot_tokens(features, self.processor.slots(len(pixels), *size), first_frame, self.processor.grid(*size))

    @override
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        return self.processor.video_text(slots, times)

    @override
    def end_embedding(self) -> Tensor | None:
        return self.model.model.end_embedding()


class TowerEncoder(FrameEncoder):
    """The way of transformers' own Video LLM, whose tower sees each frame alone, or each pair."""

    most_frames = FRAMES_PER_FORWARD

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.family = family_of(model.config.model_type)
        self.placeholder_id = self.family.video_token_id(model.config)
        self.clip_frames = self.family.temporal_patch
        self.mrope = None if self.family.mrope is None else self.family.mrope(model.config)
        self.closing = self.family.closing

    @override
    def resized(self, frames: np.ndarray | Tensor) -> Tensor:
        video = torch.as_tensor(frames).permute(0, 3, 1, 2).contiguous()  # [T,3,H,W]
        return self._processed(video, do_rescale=False, do_normalize=False)

    @override
    def pixels(self, resized: Tensor) -> Tensor:
        return self._processed(resized.to(self.model.device), do_resize=False)

    @override
    def tokens(self, pixels: Tensor, first_frame: int) -> Tokens:
        features = self.family.encode_frames(self.model, pixels)  # [T,N,D]
        slots = grid_slots(len(pixels), self.clip_frames, features.shape[1])
        shape = None if self.mrope is None else self._shape(*pixels.shape[-2:])
        return slot_tokens(features.flatten(0, 1), slots, first_frame, shape)

    @override
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        return self.family.video_text(self.processor, slots, times)

    @override
    def end_embedding(self) -> Tensor | None:
        return self.family.end_embedding(self.model)

    def _processed(self, video: Tensor, **steps: bool) -> Tensor:
        return self.family.prepare_frames(self.processor.video_processor, video, **steps)

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        side = self.model.config.vision_config.patch_size * self.family.merge_factor(self.model.config)
        return height // side, width // side


def slot_tokens(features: Tensor, slots: Sequence[Slot], first_frame: int, shape: tuple[int, int] | None) -> Tokens:
    """Untouched features [S*N,D] of slots that have N each, in raster order, from a frame of the video on."""
    count = slots[0].tokens
    lines = [(first_frame + slot.first_frame, first_frame + slot.last_frame, count) for slot in slots]
    first = torch.tensor([first for first, _, _ in lines])  # [S]
    place = torch.arange(count).repeat(len(lines))
    size = torch.ones(len(features))
    return Tokens(features, first.repeat_interleave(count), place, size, lines, shape=shape)
