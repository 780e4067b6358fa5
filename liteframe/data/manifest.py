"""Lists of videos: a folder, or JSONL with one row a video; their digest, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from liteframe.data.paths import Containment, Listing, list_folder, local_path
from liteframe.data.video.errors import VideoInfo
from liteframe.data.video.timeline import Timeline
from liteframe.files import write_jsonl
from liteframe.texts import read_jsonl

_log = logging.getLogger(__name__)
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".mkv", ".mk3d", ".webm", ".avi", ".divx", ".xvid"}
    | {".ts", ".m2ts", ".mts", ".m2t", ".mpegts", ".insv", ".lrv", ".360"}
    # not read, but reported by `liteframe scan` with what to do, rather than passed over
    | {".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v", ".vob", ".mod", ".tod", ".dat", ".flv", ".wmv", ".asf", ".ogv"}
    | {".ogm", ".rm", ".rmvb", ".mxf", ".gxf", ".dv", ".gif", ".apng", ".mjpeg", ".mjpg", ".mj2", ".y4m", ".ivf"}
    | {".h264", ".264", ".h265", ".265", ".hevc", ".av1", ".obu", ".vc1", ".nut", ".wtv", ".dvr-ms", ".amv", ".bik"}
)
READERS = ("pyav", "decord")
MOST_BREAKS = 500  # of one row


@dataclass(slots=True)
class VideoEntry:
    """One row of a manifest.

    Attributes:
        video: path of the file, absolute once loaded.
        start: start of the part to use, in seconds; None is the beginning.
        end: its end in seconds; None is the end of the video.
        duration: length of the whole file in seconds.
        fps: mean frame rate.
        width: pixels as shown: square ones, after rotation.
        height: the same.
        frames: number of frames.
        reader: the reader that `liteframe scan` found exact for this file, believed beside `breaks`; None is PyAV.
        breaks: when the frames are shown, as `Timeline` has it; None has the file itself looked through for it.
        video_track: number of the stream that is shown, among all of the file.
        broken_stamps: what `liteframe scan` found wrong with the time stamps, and what is taken in their place.
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
    breaks: tuple[tuple[int, float], ...] | None = None
    video_track: int | None = None
    broken_stamps: str | None = None

    def __post_init__(self) -> None:
        """Take the lists that JSON makes of tuples."""
        if self.breaks is not None:
            self.breaks = tuple((frame, seconds) for frame, seconds in self.breaks)

    @property
    def timeline(self) -> Timeline | None:
        """When each frame is shown, where the row tells."""
        if self.breaks is None or self.frames is None or self.fps is None:
            return None
        return Timeline(self.frames, self.fps, self.breaks)

    def with_facts(self, info: VideoInfo) -> VideoEntry:
        """The row of a file that PyAV has just looked through, and is to read.

        Where the rate changes very often, `breaks` are left out, and the file is looked through whenever it is read.
        """
        return replace(
            self,
            duration=info.duration,
            fps=info.fps,
            width=info.width,
            height=info.height,
            frames=info.frames,
            reader=None,
            breaks=info.breaks if len(info.breaks) <= MOST_BREAKS else None,
            video_track=info.video_track,
            broken_stamps=info.broken_stamps,
        )


FIELDS = tuple(field.name for field in fields(VideoEntry))


def load_manifest(source: str | os.PathLike[str]) -> list[VideoEntry]:
    """Reads a folder (all video files below it, sorted) or a JSONL file (rows as `VideoEntry`; other keys are ignored).

    Relative paths of a JSONL file start at its own folder and stay below it, also through links, so a manifest that
    comes with its videos names nothing else. An absolute path is taken as it is: only who knows this machine writes
    one, as `liteframe scan` does. Files are not opened here.

    Raises:
        ValueError: the source is missing, empty, cannot be looked into, or holds a bad row; the message names file,
            line and remedy.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        entries, listing = load_folder(path)
        for place, reason in listing.unreadable.items():
            raise ValueError(
                f"{place}: cannot be looked into ({reason}); correct its permissions, or train on the list that "
                f"`liteframe scan {path} -o GOOD.jsonl` writes"
            )
        return entries
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
    if untimed := sum(e.frames is not None and e.breaks is None and e.video_track is None for e in entries):
        _log.warning(
            "%s: %d of %d rows tell how many frames there are, but not when they are shown; their files are looked "
            "through before they are read, with PyAV. `liteframe scan %s -o NEW.jsonl` writes both down",
            *(path, untimed, len(entries), path),
        )
    return entries


def write_manifest(entries: Iterable[VideoEntry], path: str | os.PathLike[str]) -> None:
    """Writes one JSON row an entry, without empty fields, all at once or not at all."""
    write_jsonl(map(row_of_entry, entries), path)


def row_of_entry(entry: VideoEntry) -> dict[str, Any]:
    """The row of a manifest, without empty fields."""
    return {name: value for name in FIELDS if (value := getattr(entry, name)) is not None}


def list_digest(entries: Sequence[VideoEntry]) -> str:
    """sha256 over file names (below the folder common to all) and spans, in order: moving a data set keeps it."""
    root = _common_folder(entry.video for entry in entries)
    digest, comma = hashlib.sha256(b"["), b""
    for entry in entries:  # of one JSON list, row by row
        digest.update(comma + json.dumps([os.path.relpath(entry.video, root), entry.start, entry.end]).encode())
        comma = b", "
    digest.update(b"]")
    return digest.hexdigest()


def _common_folder(files: Iterable[str]) -> str:
    folders = {os.path.dirname(file) for file in files}
    return os.path.commonpath(folders) if folders else ""


def load_folder(folder: Path) -> tuple[list[VideoEntry], Listing]:
    """The videos below a folder, folder by folder, and what else lies there.

    Raises:
        ValueError: there is none, and nothing that cannot be looked into.
    """
    listing = list_folder(folder, VIDEO_SUFFIXES)
    if not listing.files and not listing.unreadable:
        raise ValueError(f"{folder}: no video below this folder (looked for {' '.join(sorted(VIDEO_SUFFIXES))})")
    # absolute, but symlinks stay: the name in a report is the name in the folder
    return [VideoEntry(path) for path in listing.files], listing


def entry_of_row(row: dict[str, Any], video: str, where: str) -> VideoEntry:
    """The entry of a row about `video`, an absolute path; keys that VideoEntry does not have are ignored.

    Raises:
        ValueError: a value is wrong; the message starts with `where`.
    """
    row = {name: row.get(name) for name in FIELDS} | {"video": video}
    for key in ("start", "end", "duration", "fps"):
        row[key] = _number(row[key], key, where)
    for key, least in {"width": 1, "height": 1, "frames": 1, "video_track": 0}.items():
        value = _number(row[key], key, where)
        if value is not None and (value != int(value) or value < least):
            raise ValueError(f"{where}: {key} is {value}; it must be a whole number from {least}")
        row[key] = None if value is None else int(value)
    if row["fps"] == 0:
        raise ValueError(f"{where}: fps is 0; leave it out when it is not known")
    if row["end"] is not None and row["end"] <= (row["start"] or 0.0):
        raise ValueError(f"{where}: end ({row['end']} s) is not after start ({row['start'] or 0.0} s)")
    if row["reader"] not in (None, *READERS):
        raise ValueError(f"{where}: reader is {row['reader']!r}; known readers: {', '.join(READERS)}")
    if row["breaks"] is not None:
        row["breaks"] = _breaks(row, where)
    return VideoEntry(**row)


def _breaks(row: dict[str, Any], where: str) -> tuple[tuple[int, float], ...]:
    """The column `breaks`, checked."""
    try:
        breaks = tuple((int(frame), float(seconds)) for frame, seconds in row["breaks"])
        Timeline(row["frames"] or 0, row["fps"] or 0.0, breaks)
    except (TypeError, ValueError, OverflowError) as error:
        remedy = "it is written by `liteframe scan`, beside frames and fps; run that again or leave it out"
        raise ValueError(f"{where}: breaks is {row['breaks']!r:.200}: {error}; {remedy}") from error
    return breaks


def _number(value: Any, key: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{where}: {key} is {value!r}; it must be a number from 0")
    return float(value)


SAME_NAME = 4  # files that may share a name and be held out together


def hold_out(entries: Sequence[VideoEntry], fraction: float) -> tuple[list[VideoEntry], list[VideoEntry]]:
    """Split into training and validation entries by a hash of the file's own name, without its folders.

    So a held-out video stays one when the list is moved, grows, or another folder comes beside the first. Files of one
    name fall on the same side, as do all rows of one file. Only where more than four have one name, as in
    `ID/video.mp4`, their last folders belong to it, as many as it takes. With a fraction above 0 and two files or more,
    both sides get one at least.

    Raises:
        ValueError: the fraction is not within [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"data.val_fraction is {fraction}; it must lie in [0, 1)")
    files = {entry.video for entry in entries}
    if fraction == 0 or len(files) < 2:
        return list(entries), []
    name_of = _names(files)
    place = {name: _hash(name) for name in set(name_of.values())}
    ranked = sorted(place, key=lambda name: (place[name], name))
    held = {name for name in ranked if place[name] < fraction} | {ranked[0]}
    held.discard(ranked[-1])
    sides: tuple[list[VideoEntry], list[VideoEntry]] = [], []
    for entry in entries:
        sides[name_of[entry.video] in held].append(entry)
    return sides


def _names(files: set[str]) -> dict[str, str]:
    """For each file the last parts of its path, as few as few files share; else all below the common folder."""
    root = _common_folder(files)
    below = {file: os.path.relpath(file, root) for file in files}
    names = {file: os.path.basename(file) for file in files}
    for depth in range(2, max(path.count(os.sep) for path in below.values()) + 2):
        counts = Counter(names.values())
        for file in files:
            if counts[names[file]] > SAME_NAME:
                names[file] = os.sep.join(below[file].split(os.sep)[-depth:])
    return names if len(set(names.values())) > 1 else below


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big") / 2**56
