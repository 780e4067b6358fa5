"""What stored targets depend on, as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from typing_extensions import override

from liteframe.models.teacher.base import Saliency
from liteframe.reduce.wap import SoftmaxOver
from liteframe.training.cache.settings import MOST_VIEWS, Part, Settings, is_whole

Codec = Literal["bf16", "int8"]
Split = Literal["train", "val"]
STORED = {"bf16": torch.bfloat16, "int8": torch.int8}
FORMAT = 5
STATISTICS = "statistics.safetensors"

# A teacher may have moved; its weights say who it is.
NAMES = ("teacher", "teacher_options", "license")


@dataclass(frozen=True)
class CacheSettings(Settings):
    """Everything that the bytes of a cache follow from.

    Attributes:
        teacher: name or folder, for people; `teacher_sha256` says which weights.
        teacher_options: further arguments of `load_teacher`.
        teacher_sha256: `Teacher.identity`.
        dim: channels C.
        patch_size: pixels.
        license: as the teacher's metadata states it.
        saliency: what the teacher's patches are weighed by.
        precision: of the teacher's forward pass, "32-true" or "bf16-mixed".
        compression: (t,h,w) of a block of weighted average pooling.
        log_weights: whether a token's log-sum-exp is stored beside it, from which larger blocks follow.
        statistics_window: (t,h,w) of the blocks that the channel statistics are of.
        scope: of its softmax.
        statistics_clips: clips that the channel statistics were measured on.
        size: (height, width) of a frame in pixels; where resize is "aspect", their product is the budget.
        mean: of the normalization, three channels.
        std: of the normalization, three channels.
        resize: see liteframe/frame_size.py.
        multiple: (down, across), what the sides of frames in their own aspect ratio are multiples of.
        clip_frames: T.
        min_fps: lowest rate of a clip in frames per second.
        crop_area: see Augmentation.
        crop_ratio: see Augmentation.
        flip: see Augmentation.
        seed: of positions and augmentation.
        train_videos: number of training videos.
        train_list: digest of their names and spans.
        val_videos: number of held-out videos.
        val_list: digest of their names and spans.
        views: K clips of each training video; view k of video i is the clip of key (k, i).
        codec: how targets are stored.
        jpeg_quality: of the stored frames; None stores no frames.
        shard_clips: clips in a shard.
        format: version of the files.
    """

    kind = "target cache"
    holds = "targets"
    mark = "teacher_sha256"
    build = "liteframe cache build --config YAML -o CACHE --views K"
    small_files = (STATISTICS,)
    version = FORMAT
    names = NAMES
    storage = (*NAMES, "patch_size", "precision", "views", "codec", "jpeg_quality", "shard_clips", "format")

    teacher: str
    teacher_options: Mapping[str, Any]
    teacher_sha256: str
    dim: int
    patch_size: int
    license: str | None
    saliency: Saliency
    precision: str
    compression: tuple[int, int, int]
    log_weights: bool
    statistics_window: tuple[int, int, int]
    scope: SoftmaxOver
    statistics_clips: int
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
    multiple: tuple[int, int]
    clip_frames: int
    min_fps: float
    crop_area: tuple[float, float]
    crop_ratio: tuple[float, float]
    flip: float
    seed: int
    train_videos: int
    train_list: str
    val_videos: int
    val_list: str
    views: int
    codec: Codec
    jpeg_quality: int | None
    shard_clips: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse what no cache can have; the values may come from a file."""
        self.check_format(self.format)
        if self.codec not in get_args(Codec):
            raise ValueError(f"codec is {self.codec!r}; choose one of {', '.join(get_args(Codec))}")
        if self.jpeg_quality is not None and not (is_whole(self.jpeg_quality) and 1 <= self.jpeg_quality <= 100):
            raise ValueError(f"jpeg_quality is {self.jpeg_quality!r}; it must lie in 1 to 100")
        grid = (*self.compression, *self.statistics_window, *self.size, *self.multiple, self.patch_size)
        counts = (self.dim, self.clip_frames, self.train_videos, self.views, self.shard_clips)
        if not all(is_whole(n) and n >= 1 for n in (*grid, *counts)) or not is_whole(self.val_videos):
            raise ValueError("sizes and counts must be whole numbers from 1 (val_videos from 0)")
        triples, pairs = (self.compression, self.statistics_window), (self.size, self.multiple)
        if {*map(len, triples)} != {3} or {*map(len, pairs)} != {2} or self.val_videos < 0:
            raise ValueError("windows have three numbers, size and multiple two, and val_videos is at least 0")
        if self.views > MOST_VIEWS:
            raise ValueError(f"views is {self.views}; there are at most {MOST_VIEWS:,}")

    @property
    def target_shape(self) -> tuple[int, int, int, int]:
        """T', h, w, C of one clip's target; of frames in their own aspect ratio, as many tokens as it has at most."""
        return self.shape_of(self.size)

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """T', h, w, C of the target of a clip of (height, width) pixels."""
        return target_shape(self.clip_frames, size, self.patch_size, self.compression, self.dim)

    @property
    @override
    def parts(self) -> list[Part]:
        views: list[Part] = [("train", view, self.train_videos) for view in range(self.views)]
        return [*views, ("val", 0, self.val_videos)]

    @property
    @override
    def payload(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"target": ((self.dim,), STORED[self.codec])}
        beside = {"scale": self.codec == "int8", "log_weight": self.log_weights}
        return {**kinds, **{name: ((), torch.float32) for name, there in beside.items() if there}}

    @override
    def grid(self, facts: Mapping[str, Any]) -> tuple[int, int, int]:
        return self.shape_of(tuple(facts["view"]["size"]))[:3]

    @property
    @override
    def stored_frames(self) -> int:
        return 0 if self.jpeg_quality is None else self.clip_frames

    @override
    def bytes_of_a_frame(self, size: int, clips: int) -> str:
        frames = clips * self.clip_frames
        return f", {size / frames:.4g} bytes a frame" if frames else ""


def target_shape(
    clip_frames: int, size: tuple[int, int], patch_size: int, compression: tuple[int, int, int], dim: int
) -> tuple[int, int, int, int]:
    """T', h, w, C of the target of a clip of so many frames of (height, width) pixels."""
    t, h, w = compression
    return math.ceil(clip_frames / t), size[0] // patch_size // h, size[1] // patch_size // w, dim
