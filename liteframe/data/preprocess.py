"""Decoded frames -> the tensor that a teacher wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from liteframe.frame_size import RESIZE_MODES, center_cut, covering_size, frame_size

# Frames larger than this many times the wanted size are shrunk inside the decoder: a 4K clip would fill the memory.
OVERSIZE = 2


@dataclass(frozen=True)
class FrameFormat:
    """How the teacher wants its frames: see FrameTransform for the fields."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    multiple: tuple[int, int] = (1, 1)

    def transform(self) -> FrameTransform:
        """Uint8 frames -> what the teacher wants."""
        return FrameTransform(self.size, self.mean, self.std, self.resize, self.multiple)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which a frame of this shape is wanted; errors as of `frame_size`."""
        return frame_size(height, width, self.size, self.resize, self.multiple)


def decode_size(height: int, width: int, wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Size (height, width) to shrink to while decoding, or None to keep the file's own."""
    scale = OVERSIZE * max(wanted[0] / height, wanted[1] / width)
    return None if scale >= 1 else (round(height * scale), round(width * scale))


class FrameTransform:
    """Resizes (bicubic, antialias), scales to [0, 1] and normalizes, as image processors of ViTs do.

    Resizing works on uint8, as PIL and torchvision-based processors do, so that teachers see the pixels they know. It
    runs on the device that the frames are on. On CPU torchvision rounds after the rows and after the columns, on CUDA
    once, after float32: on video frames 10-20 % of values then differ by one level of 255, hardly any by two.

    Args:
        size: pixels, one number for a square or `(height, width)`; the budget, where resize is "aspect".
        mean: per channel, on the scale [0, 1].
        std: per channel, on the scale [0, 1].
        resize: "squash" changes the aspect ratio (InternVL); "crop" scales until the frame covers the target, then
            cuts the center (most timm models); "aspect" keeps the aspect ratio (see liteframe/frame_size.py).
        multiple: (down, across), what the sides of a frame in its own aspect ratio are multiples of.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        resize: str = "squash",
        multiple: tuple[int, int] = (1, 1),
    ):
        height, width = (size, size) if isinstance(size, int) else size
        if height < 1 or width < 1:
            raise ValueError(f"size is {size}; it must be at least one pixel each way")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need three values each, std above 0")
        if resize not in RESIZE_MODES:
            raise ValueError(f"resize is {resize!r}; choose one of {', '.join(RESIZE_MODES)}")
        self.size = (int(height), int(width))
        self.mean, self.std, self.resize = tuple(map(float, mean)), tuple(map(float, std)), resize
        self.multiple = multiple

    def __call__(self, frames: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Transforms uint8 `[T,H,W,3]` into float32 `[T,3,h,w]`.

        Raises:
            ValueError: not uint8, or not of that shape.
        """
        return self.normalized(self.resized(frames))

    def resized(self, frames: np.ndarray | torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Resizes uint8 `[T,H,W,3]` to uint8 `[T,3,h,w]`; frames that have the size already stay as they are.

        Args:
            frames: of one video.
            size: (height, width) in pixels where it does not follow from these frames, because they are cut out of
                others; None takes it from them.

        Raises:
            ValueError: not uint8, not of that shape, or too elongated for their own aspect ratio.
        """
        frames = torch.as_tensor(frames)
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames are {frames.dtype} {tuple(frames.shape)}; expected uint8 [T,H,W,3]")
        video = frames.permute(0, 3, 1, 2)
        if self.resize == "crop":
            return self._crop(video)
        size = size or frame_size(video.shape[-2], video.shape[-1], self.size, self.resize, self.multiple)
        return self._resize(video, size)

    def normalized(self, video: torch.Tensor) -> torch.Tensor:
        """Scales uint8 `[...,3,h,w]` to [0, 1] and normalizes it, float32."""
        # Filled on the device: torch.tensor would copy them there, and a GPU's host would wait for it to catch up.
        mean, std = (
            torch.stack([torch.full((), value, device=video.device) for value in values]).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return video.to(torch.float32).div_(255).sub_(mean).div_(std).contiguous()

    def _crop(self, video: torch.Tensor) -> torch.Tensor:
        height, width = video.shape[-2:]
        covered = covering_size(height, width, self.size)
        rows, columns = center_cut(*covered, self.size)
        return self._resize(video, covered)[..., rows, columns]

    @staticmethod
    def _resize(video: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if tuple(video.shape[-2:]) == size:
            return video
        return F.resize(video, list(size), interpolation=F.InterpolationMode.BICUBIC, antialias=True)
