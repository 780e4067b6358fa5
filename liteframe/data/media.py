"""What a conversation shows: videos (or parts of them), videos given as lists of frame files, and images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from liteframe.data.manifest import VideoEntry
from liteframe.data.video.errors import VideoError

# Larger images are refused: a few kilobytes of file can unpack to gigabytes.
MAX_PIXELS = 8192 * 8192


@dataclass(frozen=True)
class MediaItem:
    """One thing that is shown.

    Attributes:
        kind: "video" (a file), "frames" (a video as image files), or "image".
        files: the video, the frames in order, or the image.
        entry: of a video: the part to show, and what its row tells of the file.
    """

    kind: str
    files: tuple[str, ...]
    entry: VideoEntry | None = None

    @property
    def placeholder(self) -> str:
        """What stands for it in the text."""
        return "<image>" if self.kind == "image" else "<video>"

    def identity(self) -> list[Any]:
        """What makes it another one, for digests; moving a data set changes nothing."""
        span = [] if self.entry is None else [self.entry.start, self.entry.end]
        return [self.kind, *map(os.path.basename, self.files), *span]


def read_image(path: str) -> np.ndarray:
    """RGB as it is meant to be seen, uint8 [H,W,3].

    Raises:
        VideoError: the file is missing, no image, damaged or too large.
    """
    try:
        with _whole_images_only(), Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise VideoError(path, "too_large", f"is an image of {image.width}x{image.height} pixels")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).copy()
    except FileNotFoundError as error:
        raise VideoError(path, "missing", "there is no such file") from error
    except UnidentifiedImageError as error:
        raise VideoError(path, "not_video", "is not an image that Pillow reads", "convert it to PNG or JPEG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VideoError(path, "corrupt", f"cannot be read as an image: {error}", "copy or convert it again") from error


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """Within the block Pillow refuses a file that ends early, whatever another library (lmms-eval) has set."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_images(paths: tuple[str, ...], resize: Callable[[np.ndarray], Any]) -> list[Any]:
    """`resize` of each image as a video of one frame [1,H,W,3]; sizes may differ."""
    return [resize(read_image(path)[None]) for path in paths]
