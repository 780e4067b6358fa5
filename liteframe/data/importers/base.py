"""What every adapter of a published data set has in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from liteframe.texts import read_json

DAMAGED = "the download is damaged or incomplete: fetch the file again"


def read_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Each item of a JSON list, with where it stands (`file: record 3`).

    Raises:
        ValueError: not JSON (file and line), or not a list.
    """
    items = read_json(path, DAMAGED)
    if not isinstance(items, list):
        raise ValueError(f"{path}: holds {type(items).__name__}, not a list of records; is it another file's name?")
    for number, item in enumerate(items, 1):
        yield f"{path}: record {number}", item


Turns = list[dict[str, str]]


@dataclass(frozen=True)
class License:
    """Its name, what follows from it, and where it stands."""

    name: str
    terms: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Source:
    """What the user gave.

    Attributes:
        folder: the data set as published, unpacked.
        split: one of the adapter's splits; None where it has none.
        videos: folder to write videos to, for sets that store them inside other files.
    """

    folder: Path
    split: str | None = None
    videos: Path | None = None


@dataclass(frozen=True)
class Record:
    """A video that is there, and what is said about it.

    Attributes:
        video: absolute path.
        where: file and line (or number) of the record.
        facts: further keys of its manifest row.
        conversations: each a list of `{"from": "human"|"gpt", "value": text}`, with `<video>` or without.
    """

    video: str
    where: str
    facts: dict[str, Any] = field(default_factory=dict)
    conversations: tuple[Turns, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A video or a record that cannot be used: reported, never passed over.

    Attributes:
        video: as the record names it.
        kind: "missing", "outside", "frames", "record", "text", "name", "duplicate", "damaged" or "stale".
        reason: what is wrong.
        remedy: what to do.
        where: file and line (or number) of the record.
    """

    video: str
    kind: str
    reason: str
    remedy: str
    where: str


class Adapter(ABC):
    """One published data set. `records` is all that a new one has to write.

    Attributes:
        name: on the command line.
        title: for people.
        published: how large the whole set is.
        license: printed before anything is written.
        has_text: whether records can carry conversations.
        splits: names of its parts, the default first; empty if it has none.
        writes_videos: whether videos are stored inside other files and are written to `Source.videos`.
    """

    name: str
    title: str
    published: str
    license: License
    has_text: bool = True
    splits: tuple[str, ...] = ()
    writes_videos: bool = False

    @abstractmethod
    def records(self, source: Source) -> Iterator[Record | Problem]:
        """All records, in a fixed order.

        Raises:
            ValueError: the folder has another layout, or an annotation file is broken; names the file and the remedy.
        """


def layout_error(folder: Path, expected: str, remedy: str) -> ValueError:
    """The error for a folder that does not look like the data set."""
    if not folder.is_dir():
        return ValueError(f"{folder}: no such folder; {remedy}")
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    return ValueError(f"{folder}: expected {expected}; found {shown}. {remedy[0].upper()}{remedy[1:]}")


def locate(folder: Path, bases: Sequence[str], name: Any, where: str, remedy: str) -> str | Problem:
    """The absolute path of a video that a record names, or why there is none.

    Args:
        folder: of the data set; nothing outside it is accepted, also not through a link.
        bases: folders below it in which the name may start, in this order.
        name: from the record.
        where: the record.
        remedy: what to do if the file is missing.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        reason = f"names its video as {name!r}, which is no path"
        return Problem(str(name), "record", reason, "mend or remove the record", where)
    if os.path.isabs(name) or ".." in Path(name).parts:
        reason = f"names a path outside {folder}"
        return Problem(name, "outside", reason, "records may only name files of the data set; remove it", where)
    root = os.path.realpath(folder)
    for base in bases:
        path = os.path.abspath(folder / base / name)
        real = os.path.realpath(path)
        if not os.path.exists(path):
            continue
        if os.path.commonpath([root, real]) != root:
            reason = f"is a link to {real}, outside {folder}"
            return Problem(name, "outside", reason, "put the files themselves below the folder", where)
        if os.path.isdir(path):
            reason = "is a folder of frames; only video files are read"
            return Problem(name, "frames", reason, "make a video of the frames (ffmpeg), or leave it out", where)
        return path
    tried = " or ".join(str(Path(folder, base, name)) for base in bases)
    return Problem(name, "missing", f"there is no {tried}", remedy, where)
