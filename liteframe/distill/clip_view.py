"""What makes one clip exact: file, frames, crop and flip. No torch here; a view is plain data that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from liteframe.data.video.errors import VideoError


@dataclass
class Augmentation:
    """Random resized crop and horizontal flip; the resize itself is the teacher's own, afterwards.

    Attributes:
        crop_area: smallest and largest part of the frame's area that is kept; (1, 1) keeps the whole frame.
        crop_ratio: smallest and largest change of the crop's aspect ratio, relative to the frame's.
        flip: probability of a horizontal flip; 0 where left and right mean something.
    """

    crop_area: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse ranges that make no crop."""
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"augment.crop_area is {self.crop_area}; it must rise within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise ValueError(f"augment.crop_ratio is {self.crop_ratio}; it must be two rising positive numbers")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip is {self.flip}; it is a probability")


def draw_view(
    height: int, width: int, settings: Augmentation, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], bool]:
    """Box of a random crop of a frame, and whether the crop is flipped."""
    return crop_box(height, width, settings, rng), bool(rng.random() < settings.flip)


def crop_box(height: int, width: int, settings: Augmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop of a frame."""
    area = rng.uniform(*settings.crop_area)
    ratio = math.exp(rng.uniform(*np.log(settings.crop_ratio)))
    box_height = min(height, max(1, round(height * min(1.0, math.sqrt(area / ratio)))))
    box_width = min(width, max(1, round(width * min(1.0, math.sqrt(area * ratio)))))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width


@dataclass(frozen=True)
class ClipView:
    """One clip of one file, before it is resized to what a teacher wants.

    Attributes:
        video: path of the file.
        indices: T frame numbers, rising; a short video's last frame comes again, as does one that stays on the screen.
        size: (height, width) in pixels to which the teacher's preprocessing brings the clip after the crop.
        reader: how the file is decoded, as in a manifest row.
        decode_size: (height, width) in pixels that frames are shrunk to while decoding; None keeps the file's own.
        box: top, left, height and width in pixels of the crop of a decoded frame; None takes the whole frame.
        flip: whether left and right are exchanged after the crop.
    """

    video: str
    indices: tuple[int, ...]
    size: tuple[int, int]
    reader: str | None = None
    decode_size: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None
    flip: bool = False

    @property
    def frame_mask(self) -> tuple[bool, ...]:
        """T values, False where a frame comes again."""
        return tuple(i == 0 or self.indices[i] > self.indices[i - 1] for i in range(len(self.indices)))

    def cut(self, frames: np.ndarray) -> np.ndarray:
        """Crop and flip decoded frames: uint8 [T,H,W,3] -> uint8 [T,h,w,3].

        Raises:
            VideoError: the box does not lie inside the frames; the file is not the one that the view was made for.
        """
        if self.box is not None:
            top, left, height, width = self.box
            if top + height > frames.shape[1] or left + width > frames.shape[2]:
                reason = (
                    f"frames have {frames.shape[1]}x{frames.shape[2]} pixels, less than the crop of {height}x{width} "
                    f"at {top},{left} needs"
                )
                raise VideoError(self.video, "index", reason)
            frames = frames[:, top : top + height, left : left + width]
        if self.flip:
            frames = frames[:, :, ::-1]
        return np.ascontiguousarray(frames)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold and `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipView:
        """The view that `to_dict` wrote, also after JSON has turned tuples into lists.

        Raises:
            TypeError: a field is missing or unknown.
        """
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
