"""Which videos and images a token cache holds, and which of them a row of conversations means."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from liteframe.align.conversation_rows import Conversation, MediaItem
from liteframe.data.manifest import VideoEntry
from liteframe.files import json_bytes
from liteframe.texts import parse_json

Key = tuple[Any, ...]


def medium_key(medium: MediaItem, sharing: int) -> Key:
    """What makes a medium of a row another one: files, the part of them, and its part of a budget."""
    start, end = (None, None) if medium.entry is None else (medium.entry.start, medium.entry.end)
    # An image has no budget.
    return (medium.kind, medium.files, start, end, 1 if medium.kind == "image" else sharing)


@dataclass(frozen=True)
class ListedMedium:
    """One line of media.jsonl.

    Attributes:
        kind: as MediaItem.
        files: paths where the cache was built.
        start: of the part that is shown, in seconds; None is the beginning.
        end: its end in seconds; None is the end of the video.
        sharing: how many videos of a row have the budget of frames together.
        bytes: size of the files; None where one was missing.
    """

    kind: str
    files: tuple[str, ...]
    start: float | None
    end: float | None
    sharing: int
    bytes: int | None

    @classmethod
    def of(cls, medium: MediaItem, sharing: int) -> ListedMedium:
        """A medium of a row, whose files are looked for."""
        try:
            size = sum(os.path.getsize(file) for file in medium.files)
        except OSError:
            size = None
        kind, files, start, end, shared = medium_key(medium, sharing)
        return cls(kind, files, start, end, shared, size)

    @property
    def names(self) -> Key:
        """What stays when a data set moves."""
        return (self.kind, *map(os.path.basename, self.files), self.start, self.end, self.sharing)

    @property
    def medium(self) -> MediaItem:
        """The medium, as a row would name it."""
        entry = VideoEntry(self.files[0], self.start, self.end) if self.kind == "video" else None
        return MediaItem(self.kind, self.files, entry)


class MediaList:
    """The media of a token cache in the order of their numbers.

    Args:
        rows: one a medium.
    """

    def __init__(self, rows: Iterable[ListedMedium]):
        self.rows = list(rows)
        self._places: dict[Key, list[int]] = defaultdict(list)
        for place, row in enumerate(self.rows):
            self._places[row.names].append(place)

    @classmethod
    def of(cls, conversations: Sequence[Conversation]) -> tuple[MediaList, list[MediaItem]]:
        """What conversations show, each once in the order in which it first comes, and the same as their rows say it.

        Raises:
            ValueError: they show nothing.
        """
        found: dict[Key, tuple[ListedMedium, MediaItem]] = {}
        for conversation in conversations:
            for medium in conversation.media:
                key = medium_key(medium, conversation.videos)
                if key not in found:
                    found[key] = (ListedMedium.of(medium, conversation.videos), medium)
        if not found:
            raise ValueError("the conversations show no video and no image; they need no token cache")
        rows, media = zip(*found.values(), strict=True)
        return cls(rows), list(media)

    def to_bytes(self) -> bytes:
        """Content of media.jsonl, which `parse` reads."""
        return b"".join(json_bytes(asdict(row)) for row in self.rows)

    @classmethod
    def parse(cls, data: bytes) -> MediaList:
        """The list that `to_bytes` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            rows = [parse_json(line, f"line {number}") for number, line in enumerate(data.splitlines(), 1)]
            return cls(ListedMedium(**{**row, "files": tuple(row["files"])}) for row in rows)
        except (TypeError, KeyError) as error:
            raise ValueError(f"it is not a list of media: {error}") from error

    def place(self, medium: MediaItem, sharing: int) -> int:
        """The number of a medium of a row: a file of the same name and size, the same part of it, as much of a budget.

        Raises:
            LookupError: there is none, or nothing tells which of several it is.
        """
        wanted = ListedMedium.of(medium, sharing)
        named = self._places.get(wanted.names, [])
        if wanted.bytes is None and len(named) > 1:
            raise LookupError(f"is missing, and {len(named)} files of its name are in the cache; bring it back")
        same = [place for place in named if wanted.bytes in (None, self.rows[place].bytes)]
        if named and not same:
            raise LookupError(
                f"has {wanted.bytes:,} bytes, and the file of its name had {self.rows[named[0]].bytes or 0:,} when the "
                "cache was built"
            )
        if not same:
            raise LookupError(f"is not in the cache{f' as one of {sharing} videos of a row' if sharing > 1 else ''}")
        return next((place for place in same if self.rows[place].files == wanted.files), same[0])
