"""Prompts and pixels for a Video LLM with a LiteFrame encoder: what all families share.

A *slot* is the few frames whose tokens stand together in the prompt, such as the 4 that become one token grid.
This file travels inside exported models: it imports torch, transformers and numpy, nothing else.
"""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

Frames = np.ndarray | torch.Tensor


class Slot(NamedTuple):
    """Frames `first_frame` to `last_frame` of a video, both included, from 0 on, and how many tokens they have."""

    first_frame: int
    last_frame: int
    tokens: int


def grid_slots(frames: int, frames_per_slot: int, tokens: int) -> list[Slot]:
    """The slots of a video of which each `frames_per_slot` frames, or what is left at the end, have `tokens` tokens."""
    starts = range(0, frames, frames_per_slot)
    return [Slot(start, min(start + frames_per_slot, frames) - 1, tokens) for start in starts]


class LiteFrameProcessor(ProcessorMixin):
    """Tokenizer, video processor and the prompt that ties them; a family says what stands for a video and an image.

    Attributes:
        image_token, image_token_id: the placeholder of one feature.
        video_token: the placeholder of a video in a prompt that is not expanded yet.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for.
    """

    image_token: str
    image_token_id: int
    video_token: str
    frames_per_slot: int
    pixels_per_token: int

    def video_text(self, slots: Sequence[tuple[int, int, int]]) -> str:
        """What stands for a video in a prompt, given its slots (see Slot); slots without tokens leave no trace."""
        raise NotImplementedError

    def image_text(self, tokens: int) -> str:
        """What stands for an image of so many tokens in a prompt."""
        raise NotImplementedError

    def slots(self, frames: int, height: int, width: int) -> list[Slot]:
        """Those of a video of `frames` frames of height x width pixels (after resizing) whose tokens form a grid."""
        return grid_slots(frames, self.frames_per_slot, self.tokens_per_slot(height, width))

    @property
    def model_input_names(self) -> list[str]:
        """Names of what __call__ returns."""
        return ["input_ids", "attention_mask", "pixel_values_videos", "video_frames"]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels that frames are resized to.

        Raises:
            ValueError: the video processor does not resize to a fixed size.
        """
        size = dict(self.video_processor.size)
        if not {"height", "width"} <= size.keys():
            raise ValueError(f"the video processor's size is {size}; a fixed height and width are needed")
        return size["height"], size["width"]

    def __call__(
        self,
        images: Sequence[Frames] | Frames | None = None,
        text: str | list[str] | None = None,
        videos: Sequence[Frames] | Frames | None = None,
        *,
        return_tensors: str = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize prompts and prepare their frames.

        Args:
            images: [H,W,3] uint8 each, or of PIL in RGB; an image is a video of one frame.
            text: prompts, with one `video_token` a video and one `image_token` an image.
            videos: [T,H,W,3] uint8 each, in the order of the placeholders.
            return_tensors: "pt" only.
            padding: as the tokenizer's; default pads to the longest prompt.
            padding_side: "left" for generation, "right" for training.
            **kwargs: further arguments of the tokenizer.

        Returns:
            input_ids, attention_mask [B,L]; with frames also pixel_values_videos [sum of T,3,H,W] float32 and
            video_frames [V], images counted among the videos, in the order of the placeholders.

        Raises:
            ValueError: no text, wrong frames, or another number of placeholders than of videos and images.
        """
        if text is None:
            raise ValueError(f"{type(self).__name__}: text is missing")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: only 'pt' is supported")
        prompts = [text] if isinstance(text, str) else list(text)
        clips = [self.pixels(v) for v in _listed(videos, ndim=4)]
        stills = [self.pixels(np.asarray(image)[None]) for image in _listed(images, ndim=3)]
        prompts, ordered = self._expand(prompts, clips, stills)
        data = dict(self.tokenizer(prompts, return_tensors="pt", padding=padding, padding_side=padding_side, **kwargs))
        data.pop("token_type_ids", None)
        if ordered:
            data["pixel_values_videos"] = torch.cat(ordered)
            data["video_frames"] = torch.tensor([len(v) for v in ordered])
        return BatchFeature(data)

    def pixels(self, frames: Frames) -> torch.Tensor:
        """Resize and normalize as the video processor says: [T,H,W,3] uint8 -> [T,3,h,w] float32.

        Raises:
            ValueError: not [T,H,W,3] uint8 with T >= 1.
        """
        return self.normalized(self.resized(frames))

    def resized(self, frames: Frames) -> torch.Tensor:
        """The first half of `pixels`, in bytes: [T,H,W,3] uint8 -> [T,3,h,w] uint8."""
        video = torch.as_tensor(frames)
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8 or len(video) == 0:
            raise ValueError(f"expected frames [T,H,W,3] uint8 with T >= 1, got {list(video.shape)} {video.dtype}")
        video = video.permute(0, 3, 1, 2).contiguous()
        bare = {"do_sample_frames": False, "do_rescale": False, "do_normalize": False}
        return self.video_processor(videos=[video], return_tensors="pt", **bare)["pixel_values_videos"][0]

    def normalized(self, resized: torch.Tensor) -> torch.Tensor:
        """The second half, on whichever device the bytes are: [T,3,h,w] uint8 -> float32."""
        bare = {"do_sample_frames": False, "do_resize": False, "do_center_crop": False, "do_pad": False}
        return self.video_processor(videos=[resized], return_tensors="pt", **bare)["pixel_values_videos"][0]

    def tokens_per_slot(self, height: int, width: int) -> int:
        """Image tokens of one slot at height x width pixels.

        Raises:
            ValueError: a side is not a multiple of pixels_per_token.
        """
        side = self.pixels_per_token
        if height % side or width % side or not height or not width:
            raise ValueError(f"frames of {height}x{width} pixels do not fit: both sides must be multiples of {side}")
        return (height // side) * (width // side)

    def _expand(
        self, prompts: list[str], clips: list[torch.Tensor], stills: list[torch.Tensor]
    ) -> tuple[list[str], list[torch.Tensor]]:
        pattern = re.compile(f"{re.escape(self.video_token)}|{re.escape(self.image_token)}")
        for kind, token, arrays in (("videos", self.video_token, clips), ("images", self.image_token, stills)):
            count = sum(prompt.count(token) for prompt in prompts)
            if count != len(arrays):
                raise ValueError(f"the text holds {count} {token} placeholders, but {len(arrays)} {kind} were given")
        sources = {self.video_token: iter(clips), self.image_token: iter(stills)}
        ordered: list[torch.Tensor] = []

        def replace(match: re.Match[str]) -> str:
            frames = next(sources[match.group()])
            ordered.append(frames)
            if match.group() == self.image_token:
                return self.image_text(self.tokens_per_slot(*frames.shape[-2:]))
            return self.video_text(self.slots(len(frames), *frames.shape[-2:]))

        return [pattern.sub(replace, prompt) for prompt in prompts], ordered


def _listed(value: Any, ndim: int) -> list[Any]:
    """One array or image, a list of them, or (as chat templates give them) lists of lists -> a list of arrays."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [array for item in value for array in _listed(item, ndim)]
    if isinstance(value, str | os.PathLike):
        raise ValueError(f"got {str(value)!r}: hand over decoded frames, not paths")
    if not hasattr(value, "ndim"):  # an image of PIL
        return [np.array(value)]
    return [value] if value.ndim == ndim else list(value)
