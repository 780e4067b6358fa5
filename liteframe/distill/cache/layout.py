"""Which clips are in which shard, and what its file is called: both follow from the settings, never from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from liteframe.distill.cache.settings import CacheSettings, parse_object

SETTINGS, STATISTICS, INDEX, PARTS = "settings.json", "statistics.safetensors", "index.json", "parts"
BAD_VIDEOS = "bad_videos.jsonl"
PartName = Literal["train", "val"]


@dataclass(frozen=True)
class Part:
    """The clips of one shard.

    Attributes:
        part: "train" or "val".
        view: number of the view.
        number: of the shard within the view.
        first: index of its first video.
        count: videos.
    """

    part: PartName
    view: int
    number: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return f"{self.part}-{self.view:03d}-{self.number:05d}"

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(view, index) of each clip, in order."""
        return [(self.view, index) for index in range(self.first, self.first + self.count)]


def all_parts(settings: CacheSettings) -> list[Part]:
    """Every shard of a cache: the views one after the other, then the held-out videos.

    A training epoch reads one view, so one epoch touches a K-th of the files.
    """
    wanted: list[tuple[PartName, int, int]] = [("train", view, settings.train_videos) for view in range(settings.views)]
    wanted.append(("val", 0, settings.val_videos))
    size = settings.part_clips
    return [
        Part(part, view, first // size, first, min(size, videos - first))
        for part, view, videos in wanted
        for first in range(0, videos, size)
    ]


def part_count(settings: CacheSettings) -> int:
    """How many shards a cache has, without a list of them."""
    size = settings.part_clips
    return settings.views * -(-settings.train_videos // size) + -(-settings.val_videos // size)


def locate(settings: CacheSettings, part: PartName, view: int, index: int) -> tuple[Part, int]:
    """The shard that holds a clip, and the clip's row in it.

    Raises:
        IndexError: the cache does not cover it.
    """
    videos, views = (settings.train_videos, settings.views) if part == "train" else (settings.val_videos, 1)
    if not 0 <= view < views or not 0 <= index < videos:
        raise IndexError(f"view {view} of {part} video {index}: the cache holds {views} views of {videos} videos")
    number, row = divmod(index, settings.part_clips)
    first = number * settings.part_clips
    return Part(part, view, number, first, min(settings.part_clips, videos - first)), row


@dataclass(frozen=True)
class Entry:
    """One shard.

    Attributes:
        clips: of the shard.
        failed: of them.
        bytes: size of the file.
        sha256: of the file.
        tables: digest of its tables, see shard.py.
    """

    clips: int
    failed: int
    bytes: int
    sha256: str
    tables: str

    @classmethod
    def parse(cls, values: Any, part: Part) -> Entry:
        """The entry of a part.

        Raises:
            ValueError: a value is missing, or of the wrong kind or size.
        """
        kinds = {"clips": int, "failed": int, "bytes": int, "sha256": str, "tables": str}
        if not isinstance(values, dict) or {name: type(value) for name, value in values.items()} != kinds:
            raise ValueError(f"the entry of {part.name} needs {', '.join(field.name for field in fields(cls))}")
        entry = cls(**values)
        if entry.clips != part.count or not 0 <= entry.failed <= entry.clips or entry.bytes < 1:
            raise ValueError(f"the entry of {part.name} does not fit: the settings give it {part.count} clips")
        return entry

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class Index:
    """All digests of a finished cache.

    Attributes:
        files: sha256 of settings and statistics by file name.
        entries: by the parts' names.
    """

    files: Mapping[str, str]
    entries: Mapping[str, Entry]

    def to_json(self) -> str:
        """Readable JSON."""
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        return json.dumps({"files": dict(self.files), "shards": entries}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, settings: CacheSettings) -> Index:
        """The index of a cache with these settings.

        Raises:
            ValueError: it names other files than the settings give, or values are missing.
        """
        values = parse_object(text)
        files, shards = values.get("files"), values.get("shards")
        if not isinstance(files, dict) or set(files) != {SETTINGS, STATISTICS} or not isinstance(shards, dict):
            raise ValueError(f"it must give digests of {SETTINGS}, {STATISTICS} and the shards, and of nothing else")
        if (count := part_count(settings)) > len(shards):
            raise ValueError(f"it names {len(shards)} shards and the settings give {count}")
        parts = {part.name: part for part in all_parts(settings)}
        if set(shards) != set(parts):
            strange = sorted(set(shards) ^ set(parts))
            raise ValueError(f"it does not name the shards that the settings give: {', '.join(map(repr, strange[:5]))}")
        return cls(files, {name: Entry.parse(shards[name], part) for name, part in parts.items()})


def sha256(data: bytes) -> str:
    """Hexadecimal digest."""
    return hashlib.sha256(data).hexdigest()
