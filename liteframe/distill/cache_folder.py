"""The folder of a cache while it is built: who may write to it, what is finished, and how a shard becomes so."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from liteframe.data.cache.index import Entry, Index, sha256
from liteframe.data.cache.layout import INDEX, PARTS, SETTINGS, STATISTICS, Part, all_parts
from liteframe.data.cache.settings import NAMES, CacheSettings
from liteframe.data.cache.shard import Record, pack_shard
from liteframe.training.run_folder import write_atomically

LOCK = ".lock"


def check_folder(folder: Path, settings: CacheSettings) -> None:
    """Refuse a folder that this build must not touch.

    Raises:
        ValueError: it holds other files, or a cache with other settings; each difference is named.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / SETTINGS).is_file() and not (folder / LOCK).is_file():
        raise ValueError(f"{folder} is not empty and holds no target cache; name another folder")
    if not (folder / SETTINGS).is_file():
        return
    try:
        there = CacheSettings.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS}: {error}; delete {folder} or name another folder") from error
    differences = there.differences(settings, ignored=NAMES)
    if differences:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differences)}. Give the build these values, or name "
            "another folder"
        )


def finished_entry(folder: Path, part: Part) -> Entry | None:
    """The entry of a part whose shard is whole, else None."""
    try:
        entry = Entry.parse(json.loads((folder / PARTS / f"{part.name}.json").read_text()), part)
        size = (folder / f"{part.name}.safetensors").stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return entry if entry.bytes == size else None


@contextlib.contextmanager
def sole_builder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process loses.

    Raises:
        ValueError: another build holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another `liteframe cache build` is writing to {folder}; wait for it") from error
        yield


def write_part(folder: Path, part: Part, records: Sequence[Record], settings: CacheSettings) -> None:
    """The shard, then the note that it is whole."""
    data, tables = pack_shard(records, settings)
    write_atomically(folder / f"{part.name}.safetensors", data)
    entry = Entry(part.count, sum(record.failed for record in records), len(data), sha256(data), tables)
    write_atomically(folder / PARTS / f"{part.name}.json", entry.to_json().encode())


def write_index(folder: Path, settings: CacheSettings) -> None:
    """The digests of everything, which makes the folder a cache.

    Raises:
        ValueError: a part is missing, because another process has failed.
    """
    entries = {part.name: finished_entry(folder, part) for part in all_parts(settings)}
    whole = {name: entry for name, entry in entries.items() if entry is not None}
    if len(whole) < len(entries):
        raise ValueError(f"{len(entries) - len(whole)} shards of {folder} are missing; run the same command again")
    files = {name: sha256((folder / name).read_bytes()) for name in (SETTINGS, STATISTICS)}
    write_atomically(folder / INDEX, Index(files, whole).to_json().encode())
