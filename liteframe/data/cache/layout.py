"""Which clips are in which shard, and what its file is called: both follow from the settings, never from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from liteframe.data.cache.settings import CacheSettings

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
