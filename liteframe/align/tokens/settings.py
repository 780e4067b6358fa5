"""What an encoder's stored tokens depend on, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from typing_extensions import override

from liteframe.align.media import Draws
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.adapter import weights_digest
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.vision import computing_dtype
from liteframe.training.cache.settings import MOST_VIEWS, Part, Settings, is_whole

Codec = Literal["fp32", "bf16"]
STORED: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEDIA = "media.jsonl"
# They may have moved; the encoder's weights say which it is, and the projector comes after the tokens.
NAMES = ("vlm", "encoder")


@dataclass(frozen=True)
class TokenSettings(Settings):
    """Everything that the bytes of a token cache follow from.

    Attributes:
        vlm: the Video LLM whose processor prepares frames, for people.
        encoder: folder of the encoder, for people; `encoder_sha256` says which.
        encoder_sha256: see encoder_identity.
        dtype: of the encoder's weights, which take that of the Video LLM.
        precision: of the encoder's forward pass, "32-true" or "bf16-mixed".
        dim: channels C.
        patch_size: in pixels.
        compression: (t,h,w), frames and patches of a token.
        clip_frames: frames that the encoder sees at a time.
        size: (height, width) of a frame in pixels; where resize is "aspect", their product is the budget.
        mean: of the normalization, three channels.
        std: of the normalization, three channels.
        resize: see liteframe/frame_size.py.
        resample: filter of the resizing, by PIL's number.
        multiple: what the sides of a frame in pixels are multiples of.
        frames: budgets, as data.frames.
        fps: range of the frame rate, as data.fps.
        seed: of the draws.
        views: K draws of each video.
        media: how many videos and images there are.
        media_list: digest of media.jsonl.
        codec: how tokens are stored.
        shard_clips: clips in a shard.
        format: version of the files.
    """

    kind = "token cache"
    holds = "tokens"
    mark = "encoder_sha256"
    build = "liteframe cache tokens --config YAML -o CACHE --views K"
    small_files = (MEDIA,)
    version = 2
    names = NAMES
    storage = (*NAMES, "precision", "seed", "views", "media", "media_list", "codec", "shard_clips", "format")

    vlm: str
    encoder: str
    encoder_sha256: str
    dtype: str
    precision: str
    dim: int
    patch_size: int
    compression: tuple[int, int, int]
    clip_frames: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    resample: int | None
    multiple: int
    frames: tuple[int, ...]
    fps: tuple[float, float]
    seed: int
    views: int
    media: int
    media_list: str
    codec: Codec
    shard_clips: int
    format: int = version

    def __post_init__(self) -> None:
        """Refuse what no cache can have; the values may come from a file."""
        self.check_format(self.format)
        if self.codec not in get_args(Codec):
            raise ValueError(f"codec is {self.codec!r}; choose one of {', '.join(get_args(Codec))}")
        grid = (*self.compression, *self.size, *self.frames, self.multiple, self.patch_size, self.clip_frames)
        if not all(is_whole(n) and n >= 1 for n in (*grid, self.dim, self.views, self.media, self.shard_clips)):
            raise ValueError("sizes and counts must be whole numbers from 1")
        if (len(self.compression), len(self.size), len(self.fps)) != (3, 2, 2) or self.views > MOST_VIEWS:
            raise ValueError(
                f"compression has three numbers, size and fps two, and there are at most {MOST_VIEWS:,} views"
            )

    @property
    def draws(self) -> Draws:
        """What is shown of a medium in each view."""
        return Draws(self.frames, self.fps, self.seed)

    @property
    @override
    def parts(self) -> list[Part]:
        return [("media", view, self.media) for view in range(self.views)]

    @property
    @override
    def payload(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"tokens": ((self.dim,), STORED[self.codec])}

    @override
    def grid(self, facts: Mapping[str, Any]) -> tuple[int, int, int]:
        return self.grid_of(len(facts["frames"]), *facts["size"])

    def grid_of(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """T', h, w of the tokens of so many frames of height x width pixels."""
        t, h, w = self.compression
        return math.ceil(frames / t), height // self.patch_size // h, width // self.patch_size // w

    def clip_bytes(self, frames: int, height: int, width: int) -> int:
        """Bytes of the tokens of so many frames of height x width pixels."""
        return math.prod(self.grid_of(frames, height, width)) * self.dim * STORED[self.codec].itemsize


def encoder_identity(encoder: LiteFrameEncoder, processor: LiteFrameProcessor) -> dict[str, Any]:
    """What the tokens of given frames depend on, under the names of TokenSettings.

    The digest is over the encoder's configuration and its weights by name and bits, in the dtype that they have.
    """
    config, video = encoder.config, processor.video_processor
    described = json.dumps(config.to_dict(), sort_keys=True, default=str)
    resample = getattr(video, "resample", None)
    return {
        "encoder_sha256": hashlib.sha256(f"{described}\n{weights_digest(encoder)}".encode()).hexdigest(),
        "dtype": str(computing_dtype(encoder)).removeprefix("torch."),
        **{"dim": config.teacher_dim, "patch_size": config.patch_size, "compression": tuple(config.compression)},
        "clip_frames": config.clip_frames,
        **{"size": processor.frame_size, "mean": tuple(video.image_mean), "std": tuple(video.image_std)},
        "resize": processor.resize,
        "resample": None if resample is None else int(resample),
        "multiple": processor.pixels_per_token,
    }
