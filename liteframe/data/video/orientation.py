"""How a decoded frame is to be shown: the rotation and mirroring that phones write as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type

from liteframe.data.video.errors import VideoError


@dataclass(frozen=True)
class Orientation:
    """A transposition, then flips; one of the eight symmetries of a rectangle."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    degrees: int = 0

    @classmethod
    def of(cls, frame: av.VideoFrame, path: str) -> Orientation:
        """Reads a frame's display matrix: (x, y) is shown at (a*x + c*y, b*x + d*y).

        Raises:
            VideoError: unsupported, for an angle that is no multiple of 90 degrees.
        """
        data = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]
        if data is None:
            return cls()
        a, b, _, c, d = np.frombuffer(bytes(data), dtype=np.int32)[:5].astype(float)
        straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
        if min(straight, crossed) > 0.01 * max(straight, crossed):
            raise VideoError(path, "unsupported", f"is rotated by {frame.rotation} degrees, no multiple of 90")
        if crossed > straight:
            return cls(True, b < 0, c < 0, frame.rotation)
        return cls(False, d < 0, a < 0, frame.rotation)

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width as shown, or back."""
        return (width, height) if self.transpose else (height, width)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Turn an image [H,W,3] as it is to be shown; a view, without a copy."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


class FrameConverter:
    """Decoded frames -> uint8 RGB as shown, scaled by FFmpeg (bicubic) if a size is given."""

    def __init__(self, path: str, size: tuple[int, int] | None):
        self._path, self._size = path, size
        self._scaler = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """A decoded frame as shown, uint8 [H,W,3]."""
        orientation = Orientation.of(frame, self._path)
        height, width = orientation.shape(*self._size) if self._size else (frame.height, frame.width)
        rgb = self._scaler.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        return orientation.apply(rgb.to_ndarray())
