"""What the bytes of a cache follow from, as JSON; and which clips are in which shard, which follows from it alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch

from liteframe.texts import parse_json

S = TypeVar("S", bound="Settings")
Part = tuple[str, int, int]  # split, view, and how many clips it has
MOST_VIEWS = 100_000


@dataclass(frozen=True)
class Settings:
    """Everything that the bytes of a cache follow from; a kind of cache adds the fields.

    Attributes:
        kind: what such a cache is called.
        holds: what is in it.
        mark: the field that no other kind has.
        build: the command that makes one.
        small_files: what it has beside settings, shards and index.
        version: of the files.
        names: fields that are for people; others say the same in digests.
        storage: fields that the cache decides by itself; a run that reads it has no such settings.
        format: the version that the files were written in.
        shard_clips: clips in a shard.
    """

    kind: ClassVar[str]
    holds: ClassVar[str]
    mark: ClassVar[str]
    build: ClassVar[str]
    small_files: ClassVar[tuple[str, ...]]
    version: ClassVar[int]
    names: ClassVar[tuple[str, ...]]
    storage: ClassVar[tuple[str, ...]]

    @property
    def parts(self) -> list[Part]:
        """What is stored, in the order of the shards."""
        raise NotImplementedError

    @property
    def payload(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Tensors of a clip by name, the features first: what follows the tokens in their shape, and their type."""
        raise NotImplementedError

    def grid(self, facts: Mapping[str, Any]) -> tuple[int, int, int]:
        """T', h, w of the features of a clip that these facts are told of."""
        raise NotImplementedError

    @property
    def stored_frames(self) -> int:
        """Frames of each clip that are stored as JPEG."""
        return 0

    def bytes_of_a_frame(self, size: int, clips: int) -> str:
        """What `liteframe cache info` adds of the bytes a frame, where so many clips take `size` bytes."""
        return ""

    def to_json(self) -> str:
        """Content of settings.json, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls: type[S], text: str) -> S:
        """The settings that `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        values, names = parse_object(text), {field.name for field in fields(cls)}
        if cls.mark not in values:
            raise ValueError(f"these are not the settings of a {cls.kind} ({cls.mark} is missing)")
        cls.check_format(values.get("format", cls.version))
        if set(values) != names:
            strange = ", ".join(sorted(set(values) ^ names))
            raise ValueError(f"these are not the settings of a {cls.kind} (missing or unknown: {strange})")
        arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ValueError(f"a value has the wrong type: {error}") from error

    @classmethod
    def check_format(cls, version: Any) -> None:
        """Refuse files of another version.

        Raises:
            ValueError: this version of LiteFrame does not read it.
        """
        if version != cls.version:
            raise ValueError(f"it has format {version!r} and this version of LiteFrame reads {cls.version}")

    def differences(self: S, other: S, ignored: Sequence[str] | None = None) -> list[str]:
        """`name is A there and B here` for each value in which `self` (there) and `other` (here) differ.

        By default what a run that reads the cache must share with it.
        """
        there, here = asdict(self), asdict(other)
        return [
            f"{name} is {there[name]!r} there and {here[name]!r} here"
            for name in there
            if name not in (self.storage if ignored is None else ignored) and there[name] != here[name]
        ]


@dataclass(frozen=True)
class ShardKey:
    """Which clips are in a shard.

    Attributes:
        split: the part of the data, such as "train".
        view: number of the view.
        number: of the shard within the view.
        first: index of its first clip.
        count: clips.
    """

    split: str
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


def all_shards(settings: Any) -> list[ShardKey]:
    """Every shard of a cache, one view after the other: an epoch that reads one view touches few files."""
    size = settings.shard_clips
    return [
        ShardKey(split, view, first // size, first, min(size, clips - first))
        for split, view, clips in settings.parts
        for first in range(0, clips, size)
    ]


def shard_count(settings: Any) -> int:
    """How many shards a cache has, without a list of them."""
    return sum(-(-clips // settings.shard_clips) for _, _, clips in settings.parts)


def locate(settings: Any, split: str, view: int, index: int) -> tuple[ShardKey, int]:
    """The shard that holds a clip, and the clip's number in it.

    Raises:
        IndexError: the cache does not cover it.
    """
    views = {number: clips for part, number, clips in settings.parts if part == split}
    if not 0 <= index < views.get(view, 0):
        clips = max(views.values(), default=0)
        raise IndexError(f"view {view} of {split} video {index}: the cache holds {len(views)} views of {clips} videos")
    number, row = divmod(index, settings.shard_clips)
    first = number * settings.shard_clips
    return ShardKey(split, view, number, first, min(settings.shard_clips, views[view] - first)), row


def parse_object(text: str) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is not JSON or not an object.
    """
    values = parse_json(text.encode(), "it")
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object was expected, not {type(values).__name__}")
    return values


def is_whole(value: Any) -> bool:
    """Whether a value from a file is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
