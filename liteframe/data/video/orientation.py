"""How a decoded frame is to be shown: the rotation and mirroring that phones write as a matrix, and square pixels."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type

from liteframe.data.video.errors import VideoError

BARELY = Fraction(1, 100)  # such a difference of width and height of a pixel is taken for rounding


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


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width over height of a pixel, of tapes, discs and anamorphic films another than 1; what nobody sees is 1."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return Fraction(1) if abs(aspect - 1) < BARELY else aspect


def shown_size(frame: av.VideoFrame, orientation: Orientation, aspect: Fraction) -> tuple[int, int]:
    """Height and width of a decoded frame as it is shown, in square pixels."""
    return orientation.shape(frame.height, max(1, round(frame.width * aspect)))


class FrameConverter:
    """Decoded frames -> uint8 RGB as shown, scaled by FFmpeg (bicubic) to a size, or to square pixels.

    Args:
        path: for messages.
        size: (height, width) in pixels, as shown; None is the frame's own.
        aspect: of its pixels, see `pixel_aspect`.
    """

    def __init__(self, path: str, size: tuple[int, int] | None, aspect: Fraction):
        self._path, self._size, self._aspect = path, size, aspect
        self._scaler = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """A decoded frame as shown, uint8 [H,W,3]."""
        orientation = Orientation.of(frame, self._path)
        height, width = orientation.shape(*(self._size or shown_size(frame, orientation, self._aspect)))
        rgb = self._scaler.reformat(frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        return orientation.apply(rgb.to_ndarray())
