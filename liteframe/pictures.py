"""Pictures as an ordinary viewer shows them: image files, Pillow images and arrays of any kind -> RGB bytes.

Every door that takes pictures comes here. This file travels inside exported models: it imports Pillow and numpy only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

# Larger images are refused: a few kilobytes of file can unpack to gigabytes.
MAX_PIXELS = 8192 * 8192
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
CONVERT = "convert it to an 8-bit PNG or JPEG"


class PictureError(ValueError):
    """A picture that cannot be shown as it is meant.

    Attributes:
        kind: "missing", "not_video" (no image), "corrupt", "too_large" or "unsupported".
        reason: what was found, in words.
        remedy: what to do about it.
    """

    def __init__(self, kind: str, reason: str, remedy: str):
        self.kind, self.reason, self.remedy = kind, reason, remedy
        super().__init__(f"{reason}; {remedy}")


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """An image file as `rgb` shows it, uint8 [H,W,3].

    Raises:
        PictureError: the file is missing, no image, damaged, too large, or of a kind that `rgb` refuses.
    """
    try:
        with _whole_images_only(), Image.open(path) as image:
            return rgb(image)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError("missing", "there is no such file", "check the path") from error
    except UnidentifiedImageError as error:
        raise PictureError("not_video", "is not an image that Pillow reads", CONVERT) from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise PictureError("corrupt", f"cannot be read as an image: {error}", "copy or convert it again") from error


def rgb(picture: Image.Image | np.ndarray | Any) -> np.ndarray:
    """RGB bytes as an ordinary viewer shows them.

    Turned upright as its EXIF says; what is transparent lies on white, as stock InternVL's processor has it; 16 bits
    are scaled to 8. Of several pages or pictures in a file it is the one that Pillow stands at, the first of a file.
    As in other trainers, no color profile is applied.

    Args:
        picture: a Pillow image of any mode, or an array (what numpy makes one of): [H,W] or [H,W,1] gray, [H,W,2] gray
            with alpha, [H,W,3] RGB or [H,W,4] RGBA; bool, uint8 or uint16.

    Returns:
        uint8 [H,W,3].

    Raises:
        PictureError: it is too large, or nothing says which of its numbers is white (32-bit integers, floats).
    """
    if not isinstance(picture, Image.Image):
        array = _bytes(np.asarray(picture))
        if array.ndim == 3 and array.shape[-1] == 3:
            return array
        picture = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    if picture.width * picture.height > MAX_PIXELS:
        raise PictureError("too_large", f"is an image of {picture.width}x{picture.height} pixels", "make it smaller")
    picture.load()
    turn = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    shown = picture if turn is None else picture.transpose(turn)
    if shown.mode.startswith("I;16"):
        values = np.asarray(shown)
        gray = np.where(values == picture.info.get("transparency"), np.uint8(255), _bytes(values))
        return np.repeat(gray[..., None], 3, axis=-1)  # [H,W,3]
    if shown.mode in ("I", "F"):
        kind = "32-bit integers" if shown.mode == "I" else "floats"
        raise PictureError("unsupported", f"is an image of {kind}, of which nothing says which is white", CONVERT)
    if shown.has_transparency_data:
        over = shown.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return np.array(shown.convert("RGB"))


def _bytes(array: np.ndarray) -> np.ndarray:
    """[H,W] or [H,W,C] of bool, uint8 or uint16 -> uint8 of the same shape."""
    shaped = array.ndim == 2 or (array.ndim == 3 and 1 <= array.shape[-1] <= 4)
    if not shaped or array.size == 0 or array.dtype.newbyteorder("=") not in (bool, np.uint8, np.uint16):
        raise PictureError(
            "unsupported",
            f"is an array {list(array.shape)} {array.dtype}",
            "a picture is [H,W] or [H,W,C], gray or RGB, with alpha or without, in uint8 or uint16",
        )
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """Within the block Pillow refuses a file that ends early, whatever another library (lmms-eval) has set."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
