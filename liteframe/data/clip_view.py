"""What makes one clip exact: file, frames, crop and flip. No torch here; a view is plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from liteframe.data.video_types import VideoError


@dataclass(frozen=True)
class ClipView:
    """One clip of one file, before it is resized to what a teacher wants.

    Attributes:
        video: path of the file.
        indices: T frame numbers, rising; a short video's last frame is repeated.
        reader: how the file is decoded, as in a manifest row.
        decode_size: (height, width) in pixels that frames are shrunk to while decoding; None keeps the file's own.
        box: top, left, height and width in pixels of the crop of a decoded frame; None takes the whole frame.
        flip: whether left and right are exchanged after the crop.
    """

    video: str
    indices: tuple[int, ...]
    reader: str | None = None
    decode_size: tuple[int, int] | None = None
    box: tuple[int, int, int, int] | None = None
    flip: bool = False

    @property
    def frame_mask(self) -> tuple[bool, ...]:
        """T values, False where a short video's last frame is repeated."""
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
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipView:
        """The view that `to_dict` wrote, also after JSON has turned tuples into lists.

        Raises:
            TypeError: a field is missing or unknown.
        """
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)
