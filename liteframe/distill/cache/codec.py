"""Targets in fewer bytes, and the largest error that this may cause.

Shapes: T' slots, (h,w) grid, C channels. Whitened means (x - mean) / std with the channel statistics of the cache: a
few channels of large ViTs are a hundred times the rest, and int8 on raw features would keep nothing of the others.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from liteframe.distill.cache.settings import CacheSettings, Codec
from liteframe.distill.statistics import TargetStatistics


def encode_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Uint8 [H,W,3] -> a JPEG file.

    Colour keeps its full resolution: a fifth more bytes, and a third of the change in a teacher's features.
    """
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=quality, subsampling="4:4:4")
    return file.getvalue()


def decode_jpeg(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """A JPEG file of the given (height, width) -> uint8 [H,W,3].

    Raises:
        ValueError: it is not a JPEG, or has another size (found before it is decoded).
    """
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size != size[::-1] or image.mode != "RGB":
                raise ValueError(f"a stored frame has {image.size[::-1]} pixels, mode {image.mode}; expected {size}")
            return np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"a stored frame is not a JPEG: {error}") from error


FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0
# Half the distance to the next number, relative to a number: 8 bits of precision in bf16, 4 in e4m3.
BF16_STEP, FP8_STEP = 2.0**-8, 2.0**-4
FP8_SMALLEST = 2.0**-9  # subnormal

STORED = {"bf16": torch.bfloat16, "fp8": FP8, "int8": torch.int8}


@dataclass(frozen=True)
class TargetCodec:
    """Encodes targets [T',h,w,C] and decodes them again.

    "bf16": rounded. "fp8": whitened, then e4m3 with a scale for each channel of the clip, so that nothing saturates.
    "int8": whitened, then int8 with a scale for each token.

    Attributes:
        name: which of them.
        mean: float32 [C], for whitening.
        std: float32 [C], positive.
    """

    name: Codec
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, settings: CacheSettings, statistics: TargetStatistics) -> TargetCodec:
        """The codec of a cache."""
        return cls(settings.codec, *statistics.whitening)

    def encode(self, target: Tensor) -> dict[str, Tensor]:
        """Float32 [T',h,w,C] -> "target" of the same shape and, but for bf16, "scale" float32.

        Raises:
            ValueError: a value is not finite.
        """
        if not torch.isfinite(target).all():
            raise ValueError("the teacher's features are not finite; check its weights and precision")
        if self.name == "bf16":
            return {"target": target.to(torch.bfloat16)}
        white = (target.float() - self.mean.to(target.device)) / self.std.to(target.device)
        if self.name == "fp8":
            scale = white.abs().amax((0, 1, 2)).clamp_min(1e-12) / FP8_LARGEST
            return {"target": (white / scale).clamp(-FP8_LARGEST, FP8_LARGEST).to(FP8), "scale": scale}
        scale = white.abs().amax(-1).clamp_min(1e-12) / 127
        return {"target": (white / scale[..., None]).round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """What `encode` gave -> [T',h,w,C], bf16 for "bf16" and float32 for the others."""
        stored = encoded["target"]
        if self.name == "bf16":
            return stored
        scale = encoded["scale"] if self.name == "fp8" else encoded["scale"][..., None]
        white = stored.float().mul_(scale)
        return white.mul_(self.std.to(white.device)).add_(self.mean.to(white.device))

    def bound(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Largest error of each value that `decode` gives, float32 [T',h,w,C], rounding of the arithmetic included."""
        decoded = self.decode(encoded).float()
        if self.name == "bf16":
            return decoded.abs() * BF16_STEP
        if self.name == "fp8":
            step = (encoded["target"].float().abs() * FP8_STEP).clamp_min(FP8_SMALLEST / 2) * encoded["scale"]
        else:
            step = (encoded["scale"][..., None] / 2).expand_as(decoded)
        mean, std = self.mean.to(decoded.device), self.std.to(decoded.device)
        # Four float32 operations; the subtraction of a large mean is the one that shows.
        return step * std * 1.001 + 4 * torch.finfo(torch.float32).eps * (decoded.abs() + mean.abs())


def scale_shape(codec: Codec, shape: tuple[int, int, int, int]) -> tuple[int, ...] | None:
    """Shape of a clip's "scale", or None where the codec has none."""
    return {"bf16": None, "fp8": shape[3:], "int8": shape[:3]}[codec]


def clip_bytes(codec: Codec, shape: tuple[int, int, int, int]) -> int:
    """Bytes of one clip's target."""
    scale = scale_shape(codec, shape)
    return math.prod(shape) * STORED[codec].itemsize + (0 if scale is None else 4 * math.prod(scale))
