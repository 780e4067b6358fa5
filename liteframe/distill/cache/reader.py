"""Reads a finished cache: any clip by part, view and index."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.codec import TargetCodec, decode_jpeg
from liteframe.distill.cache.layout import INDEX, SETTINGS, STATISTICS, Index, Part, PartName, locate, sha256
from liteframe.distill.cache.remote import fetch, is_remote, mirror
from liteframe.distill.cache.settings import CacheSettings
from liteframe.distill.cache.shard import Record, Shard
from liteframe.distill.clip_view import ClipView
from liteframe.distill.statistics import TargetStatistics

# Open shards of a process; each keeps a mapping and some 50 kB of tables.
OPEN_SHARDS = 256
REBUILD = "delete this file and run `liteframe cache build` again with the same settings: it makes only what is missing"


@dataclass(frozen=True)
class CachedClip:
    """One clip of a cache.

    Attributes:
        view: which clip it is; `view.frame_mask` tells the real frames.
        target: raw pooled teacher features [T',h,w,C], before clipping and standardization; bf16, or float32 where the
            codec is fp8 or int8.
        frames: uint8 [T,H,W,3] at the size that the teacher saw, or None where the cache holds none.
    """

    view: ClipView
    target: Tensor
    frames: np.ndarray | None


class TargetCache:
    """A finished cache of CTD targets.

    Shards are opened when they are first used; every byte that is returned was checked against a digest that the index
    leads to. An object can be pickled into workers, each of which opens shards of its own.

    Args:
        folder: of the cache, or its local copy.
        settings: what the targets depend on.
        index: digests.
        remote: address that missing shards are fetched from.
    """

    def __init__(self, folder: Path, settings: CacheSettings, index: Index, remote: str | None = None):
        self.folder, self.settings, self.index, self.remote = folder, settings, index, remote
        self._shards: OrderedDict[str, Shard] = OrderedDict()

    @classmethod
    def open(cls, folder: str | PathLike[str]) -> TargetCache:
        """A finished cache.

        Args:
            folder: its folder, or the address of one in object storage (s3://bucket/cache, gs://..., whatever fsspec
                knows); shards are then copied to a local folder when they are first used.

        Raises:
            ValueError: the folder holds none, or its small files are damaged.
        """
        remote = os.fspath(folder) if is_remote(folder) else None
        root = Path(folder) if remote is None else mirror(remote)
        if not (root / INDEX).is_file():
            state = "is not finished: run" if (root / SETTINGS).is_file() else "is not a target cache: make one with"
            raise ValueError(f"{root} {state} `liteframe cache build --config YAML -o {root} --views K`")
        data = read_inside(root, SETTINGS)
        try:
            settings = CacheSettings.from_json(data.decode())
        except ValueError as error:
            raise ValueError(f"{root / SETTINGS}: {error}") from error
        try:
            index = Index.parse(read_inside(root, INDEX).decode(), settings)
            if index.files[SETTINGS] != sha256(data):
                raise ValueError(f"{SETTINGS} does not have the digest that it names")
        except ValueError as error:
            raise ValueError(f"{root / INDEX}: {error}; {REBUILD}") from error
        return cls(root, settings, index, remote)

    @cached_property
    def statistics(self) -> TargetStatistics:
        """Channel statistics of the targets.

        Raises:
            ValueError: the file is damaged.
        """
        data, path = read_inside(self.folder, STATISTICS), self.folder / STATISTICS
        if sha256(data) != self.index.files[STATISTICS]:
            raise ValueError(
                f"{path} does not have the digest that {INDEX} names; copy the cache again, or delete {self.folder} "
                "and build it anew"
            )
        return TargetStatistics.from_bytes(data, self.settings.dim)

    @cached_property
    def codec(self) -> TargetCodec:
        """How the targets are stored."""
        return TargetCodec.of(self.settings, self.statistics)

    def read(self, part: PartName, view: int, index: int) -> CachedClip | VideoError:
        """View `view` of video `index` of the part; the middle clip of a held-out video is view 0 of part "val".

        A video that could not be read when the cache was built comes back as that error.

        Raises:
            IndexError: the cache does not cover it.
            ValueError: a file is missing or damaged; the message names it and the remedy.
        """
        record = self.record(part, view, index)
        if record.failed:
            return VideoError(**record.facts["failure"])
        frames = None
        if record.jpeg:
            frames = np.stack([decode_jpeg(file, self.settings.size) for file in record.jpeg])
        return CachedClip(ClipView.from_dict(record.facts["view"]), self.codec.decode(record.encoded), frames)

    def record(self, part: PartName, view: int, index: int) -> Record:
        """The clip as it is stored.

        Raises:
            IndexError: the cache does not cover it.
            ValueError: a file is missing or damaged.
        """
        place, row = locate(self.settings, part, view, index)
        try:
            return self._shard(place).read(row)
        except (ValueError, OSError) as error:
            remedy = REBUILD if self.remote is None else f"delete this file: it is fetched again from {self.remote}"
            raise ValueError(f"{self.path(place)}: {error}; {remedy}") from error

    def path(self, place: Part) -> Path:
        """The file of a part."""
        return self.folder / f"{place.name}.safetensors"

    def checked_path(self, place: Part) -> Path:
        """The file of a part, fetched if it is elsewhere; it lies in the folder and has the size that the index names.

        Raises:
            ValueError: it does not.
            OSError: there is no such file.
        """
        path = self.path(place)
        if self.remote is not None:
            fetch(self.remote, path)
        _refuse_outside(path)
        size, wanted = path.stat().st_size, self.index.entries[place.name].bytes
        if size != wanted:
            raise ValueError(f"it has {size} bytes and the index names {wanted}")
        return path

    def __getstate__(self) -> dict[str, Any]:
        """Without open files."""
        return {**self.__dict__, "_shards": OrderedDict()}

    def _shard(self, place: Part) -> Shard:
        if place.name in self._shards:
            self._shards.move_to_end(place.name)
            return self._shards[place.name]
        entry = self.index.entries[place.name]
        path = self.checked_path(place)
        shard = self._shards[place.name] = Shard(path, self.settings, entry.clips, entry.tables)
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard


def read_inside(folder: Path, name: str) -> bytes:
    """The bytes of a small file of the cache.

    Raises:
        ValueError: it is missing, or a link that leads elsewhere.
    """
    path = folder / name
    try:
        _refuse_outside(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; copy the cache again, or {REBUILD}") from error


def _refuse_outside(path: Path) -> None:
    if path.resolve().parent != path.parent.resolve():
        raise ValueError(f"it is a link to {path.resolve()}, outside of the cache")
