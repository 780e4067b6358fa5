"""Lists of videos: a folder, or JSONL with one row a video; their digest, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from liteframe.data.paths import Containment, local_path
from liteframe.files import read_jsonl, write_jsonl

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts"}
    # not read, but reported by `liteframe scan` with what to do, rather than passed over
    | {".mpg", ".mpeg", ".flv", ".wmv", ".ogv"}
)
READERS = ("pyav", "decord")


@dataclass
class VideoEntry:
    """One row of a manifest.

    Attributes:
        video: path of the file, absolute once loaded.
        start: start of the part to use, in seconds; None is the beginning.
        end: its end in seconds; None is the end of the video.
        duration: length of the whole file in seconds.
        fps: mean frame rate.
        width: pixels after rotation.
        height: pixels after rotation.
        frames: number of frames.
        reader: the reader that `liteframe scan` found exact for this file; None reads with PyAV.
    """

    video: str
    start: float | None = None
    end: float | None = None
    duration: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    reader: str | None = None


def load_manifest(source: str | os.PathLike[str]) -> list[VideoEntry]:
    """Reads a folder (all video files below it, sorted) or a JSONL file (rows as `VideoEntry`; other keys are ignored).

    Relative paths of a JSONL file start at its own folder and stay below it, also through links, so a manifest that
    comes with its videos names nothing else. An absolute path is taken as it is: only who knows this machine writes
    one, as `liteframe scan` does. Files are not opened here.

    Raises:
        ValueError: the source is missing, empty or holds a bad row; the message names file, line and remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such folder or manifest; give a folder of videos or a .jsonl file")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: this is a video, not a manifest; give its folder or a .jsonl file that names it")
    entries, inside = [], Containment(path.parent)
    for where, row in read_jsonl(path, "a manifest is JSONL"):
        if not isinstance(row, dict):
            raise ValueError(f'{where}: a row is an object such as {{"video": "a.mp4"}}, not {type(row).__name__}')
        entries.append(entry_of_row(row, local_path(row.get("video"), inside, f"{where}: 'video'"), where))
    if not entries:
        raise ValueError(f"{path}: the manifest holds no row")
    return entries


def write_manifest(entries: Iterable[VideoEntry], path: str | os.PathLike[str]) -> None:
    """Writes one JSON row an entry, without empty fields, all at once or not at all."""
    rows = ({key: value for key, value in asdict(entry).items() if value is not None} for entry in entries)
    write_jsonl(rows, path)


def list_digest(entries: Sequence[VideoEntry]) -> str:
    """sha256 over file names (below the folder common to all) and spans, in order: moving a data set keeps it."""
    folders = {os.path.dirname(entry.video) for entry in entries}
    root = os.path.commonpath(folders) if folders else ""
    rows = [(os.path.relpath(entry.video, root), entry.start, entry.end) for entry in entries]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _load_folder(folder: Path) -> list[VideoEntry]:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    )
    if not found:
        raise ValueError(f"{folder}: no video below this folder (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    # absolute, but symlinks stay: the name in a report is the name in the folder
    return [VideoEntry(os.path.abspath(path)) for path in found]


def entry_of_row(row: dict[str, Any], video: str, where: str) -> VideoEntry:
    """The entry of a row about `video`, an absolute path; keys that VideoEntry does not have are ignored.

    Raises:
        ValueError: a value is wrong; the message starts with `where`.
    """
    row = {field.name: row.get(field.name) for field in fields(VideoEntry)} | {"video": video}
    for key in ("start", "end", "duration", "fps"):
        row[key] = _number(row[key], key, where)
    for key in ("width", "height", "frames"):
        value = _number(row[key], key, where)
        if value is not None and (value != int(value) or value < 1):
            raise ValueError(f"{where}: {key} is {value}; it must be a whole number from 1")
        row[key] = None if value is None else int(value)
    if row["fps"] == 0:
        raise ValueError(f"{where}: fps is 0; leave it out when it is not known")
    if row["end"] is not None and row["end"] <= (row["start"] or 0.0):
        raise ValueError(f"{where}: end ({row['end']} s) is not after start ({row['start'] or 0.0} s)")
    if row["reader"] not in (None, *READERS):
        raise ValueError(f"{where}: reader is {row['reader']!r}; known readers: {', '.join(READERS)}")
    return VideoEntry(**row)


def _number(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{where}: {key} is {value!r}; it must be a number from 0")
    return float(value)


def hold_out(entries: Sequence[VideoEntry], fraction: float) -> tuple[list[VideoEntry], list[VideoEntry]]:
    """Split into training and validation entries by a hash of the file's name below the folder common to all.

    All rows of one file fall on the same side. With a fraction above 0 and two files or more, both sides get one at
    least.

    Raises:
        ValueError: the fraction is not within [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.val_fraction is {fraction}; it must lie in [0, 1)")
    files = sorted({entry.video for entry in entries})
    if fraction == 0 or len(files) < 2:
        return list(entries), []
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    place = {file: _hash(os.path.relpath(file, root)) for file in files}
    held = {file for file in files if place[file] < fraction}
    ranked = sorted(files, key=place.__getitem__)
    held = (held | {ranked[0]}) - {ranked[-1]}
    return (
        [entry for entry in entries if entry.video not in held],
        [entry for entry in entries if entry.video in held],
    )


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56
