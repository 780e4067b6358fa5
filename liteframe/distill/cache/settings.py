"""What stored targets depend on, as JSON; and which clips are in which shard, which follows from it alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from liteframe.models.teacher.base import Saliency
from liteframe.reduce.wap import SoftmaxOver
from liteframe.texts import parse_json

Codec = Literal["bf16", "int8"]
Split = Literal["train", "val"]
FORMAT = 5

# A teacher may have moved; its weights say who it is.
NAMES = ("teacher", "teacher_options", "license")
# What the cache decides by itself; a run that reads it has no such settings.
STORAGE = (*NAMES, "patch_size", "precision", "views", "codec", "jpeg_quality", "shard_clips", "format")


@dataclass(frozen=True)
class CacheSettings:
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
        check_format(self.format)
        if self.codec not in get_args(Codec):
            raise ValueError(f"codec is {self.codec!r}; choose one of {', '.join(get_args(Codec))}")
        if self.jpeg_quality is not None and not (_whole(self.jpeg_quality) and 1 <= self.jpeg_quality <= 100):
            raise ValueError(f"jpeg_quality is {self.jpeg_quality!r}; it must lie in 1 to 100")
        grid = (*self.compression, *self.statistics_window, *self.size, *self.multiple, self.patch_size)
        counts = (self.dim, self.clip_frames, self.train_videos, self.views, self.shard_clips)
        if not all(_whole(n) and n >= 1 for n in (*grid, *counts)) or not _whole(self.val_videos):
            raise ValueError("sizes and counts must be whole numbers from 1 (val_videos from 0)")
        triples, pairs = (self.compression, self.statistics_window), (self.size, self.multiple)
        if {*map(len, triples)} != {3} or {*map(len, pairs)} != {2} or self.val_videos < 0:
            raise ValueError("windows have three numbers, size and multiple two, and val_videos is at least 0")

    @property
    def target_shape(self) -> tuple[int, int, int, int]:
        """T', h, w, C of one clip's target; of frames in their own aspect ratio, as many tokens as it has at most."""
        return self.shape_of(self.size)

    def shape_of(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """T', h, w, C of the target of a clip of (height, width) pixels."""
        return target_shape(self.clip_frames, size, self.patch_size, self.compression, self.dim)

    def to_json(self) -> str:
        """Content of settings.json, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CacheSettings:
        """The settings that `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        values, names = parse_object(text), {field.name for field in fields(cls)}
        check_format(values.get("format", FORMAT))
        if set(values) != names:
            strange = ", ".join(sorted(set(values) ^ names))
            raise ValueError(f"these are not the settings of a target cache (missing or unknown: {strange})")
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(f"a value has the wrong type: {error}") from error

    def differences(self, other: CacheSettings, ignored: Sequence[str] = STORAGE) -> list[str]:
        """`name is A there and B here` for each value in which `self` (there) and `other` (here) differ.

        By default what a run that reads the cache must share with it.
        """
        there, here = asdict(self), asdict(other)
        return [
            f"{name} is {there[name]!r} there and {here[name]!r} here"
            for name in there
            if name not in ignored and there[name] != here[name]
        ]


@dataclass(frozen=True)
class ShardKey:
    """Which clips are in a shard.

    Attributes:
        split: "train" or "val".
        view: number of the view.
        number: of the shard within the view.
        first: index of its first video.
        count: videos.
    """

    split: Split
    view: int
    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"{self.split}-{self.view:03d}-{self.number:05d}"

    @property
    def clips(self) -> list[tuple[int, int]]:
        """(view, index) of each clip, in order."""
        return [(self.view, index) for index in range(self.first, self.first + self.count)]


def all_shards(settings: CacheSettings) -> list[ShardKey]:
    """Every shard of a cache: the views one after the other, then the held-out videos.

    A training epoch reads one view, so one epoch touches a K-th of the files.
    """
    views: list[tuple[Split, int, int]] = [("train", view, settings.train_videos) for view in range(settings.views)]
    views.append(("val", 0, settings.val_videos))
    size = settings.shard_clips
    return [
        ShardKey(split, view, first // size, first, min(size, videos - first))
        for split, view, videos in views
        for first in range(0, videos, size)
    ]


def shard_count(settings: CacheSettings) -> int:
    """How many shards a cache has, without a list of them."""
    size = settings.shard_clips
    return settings.views * -(-settings.train_videos // size) + -(-settings.val_videos // size)


def locate(settings: CacheSettings, split: Split, view: int, index: int) -> tuple[ShardKey, int]:
    """The shard that holds a clip, and the clip's number in it.

    Raises:
        IndexError: the cache does not cover it.
    """
    videos, views = (settings.train_videos, settings.views) if split == "train" else (settings.val_videos, 1)
    if not 0 <= view < views or not 0 <= index < videos:
        raise IndexError(f"view {view} of {split} video {index}: the cache holds {views} views of {videos} videos")
    number, row = divmod(index, settings.shard_clips)
    first = number * settings.shard_clips
    return ShardKey(split, view, number, first, min(settings.shard_clips, videos - first)), row


def target_shape(
    clip_frames: int, size: tuple[int, int], patch_size: int, compression: tuple[int, int, int], dim: int
) -> tuple[int, int, int, int]:
    """T', h, w, C of the target of a clip of so many frames of (height, width) pixels."""
    t, h, w = compression
    return math.ceil(clip_frames / t), size[0] // patch_size // h, size[1] // patch_size // w, dim


def check_format(version: Any) -> None:
    """Refuse files of another version.

    Raises:
        ValueError: this version of LiteFrame does not read it.
    """
    if version != FORMAT:
        raise ValueError(f"it has format {version!r} and this version of LiteFrame reads {FORMAT}")


def parse_object(text: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is not JSON or not an object.
    """
    values = parse_json(text.encode(), "it")
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object was expected, not {type(values).__name__}")
    return values


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
