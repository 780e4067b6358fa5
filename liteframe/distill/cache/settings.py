"""What stored targets depend on, as JSON, and in which of it a cache and a run disagree."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from liteframe.reduce.wap import SoftmaxOver

Codec = Literal["bf16", "fp8", "int8"]
FORMAT = 1

# A teacher may have moved; its weights say who it is.
NAMES = ("teacher", "teacher_options", "license")
# What the cache decides by itself; a run that reads it has no such settings.
STORAGE = (*NAMES, "patch_size", "precision", "views", "codec", "jpeg_quality", "part_clips", "format")


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
        precision: of the teacher's forward pass, "32-true" or "bf16-mixed".
        compression: (t,h,w) of a block of weighted average pooling.
        scope: of its softmax.
        statistics_clips: clips that the channel statistics were measured on.
        size: (height, width) of a frame in pixels.
        mean: of the normalization, three channels.
        std: of the normalization, three channels.
        resize: "squash" or "crop".
        clip_frames: T.
        min_fps: lowest rate of a clip in frames per second.
        crop_area: see Augmentation.
        crop_ratio: see Augmentation.
        flip: see Augmentation.
        seed: of positions and augmentation.
        train_videos: number of videos in the train part.
        train_list: digest of their names and spans.
        val_videos: number of held-out videos.
        val_list: digest of their names and spans.
        views: K clips of each training video; view k of video i is the clip of key (k, i).
        codec: how targets are stored.
        jpeg_quality: of the stored frames; None stores no frames.
        part_clips: clips in a shard.
        format: version of the files.
    """

    teacher: str
    teacher_options: Mapping[str, Any]
    teacher_sha256: str
    dim: int
    patch_size: int
    license: str | None
    precision: str
    compression: tuple[int, int, int]
    scope: SoftmaxOver
    statistics_clips: int
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: str
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
    part_clips: int
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse what no cache can have; the values may come from a file."""
        if self.format != FORMAT:
            raise ValueError(f"it has format {self.format!r} and this version of LiteFrame reads {FORMAT}")
        if self.codec not in get_args(Codec):
            raise ValueError(f"codec is {self.codec!r}; choose one of {', '.join(get_args(Codec))}")
        if self.jpeg_quality is not None and not (_whole(self.jpeg_quality) and 1 <= self.jpeg_quality <= 100):
            raise ValueError(f"jpeg_quality is {self.jpeg_quality!r}; it must lie in 1 to 100")
        grid = (*self.compression, *self.size, self.patch_size)
        counts = (self.dim, self.clip_frames, self.train_videos, self.views, self.part_clips)
        if not all(_whole(n) and n >= 1 for n in (*grid, *counts)) or not _whole(self.val_videos):
            raise ValueError("sizes and counts must be whole numbers from 1 (val_videos from 0)")
        if len(self.compression) != 3 or len(self.size) != 2 or self.val_videos < 0:
            raise ValueError("compression has three numbers, size two, and val_videos is at least 0")

    @property
    def target_shape(self) -> tuple[int, int, int, int]:
        """T', h, w, C of one clip's target."""
        t, h, w = self.compression
        grid = [pixels // self.patch_size for pixels in self.size]
        return math.ceil(self.clip_frames / t), grid[0] // h, grid[1] // w, self.dim

    def to_json(self) -> str:
        """Readable JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CacheSettings:
        """The settings that `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        values, names = parse_object(text), {field.name for field in fields(cls)}
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


def parse_object(text: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is not JSON or not an object.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object was expected, not {type(values).__name__}")
    return values


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
