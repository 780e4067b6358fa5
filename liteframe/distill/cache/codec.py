"""Targets and frames in fewer bytes: bfloat16 or whitened int8, and JPEG.

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

from liteframe.distill.cache.settings import STORED, CacheSettings, Codec
from liteframe.distill.statistics import ChannelStatistics


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


@dataclass(frozen=True)
class TargetCodec:
    """Encodes targets [T',h,w,C] and decodes them again.

    "bf16": rounded. "int8": whitened, then int8 with a scale for each token, so that nothing saturates.

    Attributes:
        name: which of them.
        mean: float32 [C], for whitening.
        std: float32 [C], positive.
    """

    name: Codec
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, settings: CacheSettings, statistics: ChannelStatistics) -> TargetCodec:
        """The codec that settings and channel statistics of a cache determine."""
        return cls(settings.codec, statistics.mean.float(), statistics.scale.float())

    def encode(self, target: Tensor) -> dict[str, Tensor]:
        """Float32 [T',h,w,C] -> "target" of the same shape and, with int8, "scale" float32 [T',h,w].

        Raises:
            ValueError: a value is not finite.
        """
        if not torch.isfinite(target).all():
            raise ValueError("the teacher's features are not finite; check its weights and precision")
        if self.name == "bf16":
            return {"target": target.to(torch.bfloat16)}
        white = (target.float() - self.mean.to(target.device)) / self.std.to(target.device)
        scale = white.abs().amax(-1).clamp_min(1e-12) / 127
        return {"target": (white / scale[..., None]).round().clamp(-127, 127).to(torch.int8), "scale": scale}

    def decode(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """What `encode` gave -> [T',h,w,C], bf16 for "bf16" and float32 for "int8"."""
        stored = encoded["target"]
        if self.name == "bf16":
            return stored
        white = stored.float().mul_(encoded["scale"][..., None])
        return white.mul_(self.std.to(white.device)).add_(self.mean.to(white.device))


def clip_bytes(codec: Codec, shape: tuple[int, int, int, int], log_weights: bool = False) -> int:
    """Bytes that a target of shape [T',h,w,C] takes in a shard, scales and weights of its tokens included."""
    beside = (codec == "int8") + log_weights  # float32 a token
    return math.prod(shape) * STORED[codec].itemsize + 4 * beside * math.prod(shape[:3])
