"""Reads a finished cache, from a folder or from object storage: any clip by split, view and index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from torch import Tensor

from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.codec import TargetCodec, decode_jpeg
from liteframe.distill.cache.settings import (
    CacheSettings,
    ShardKey,
    Split,
    all_shards,
    locate,
    parse_object,
    shard_count,
)
from liteframe.distill.cache.shard import Shard, ShardInfo, StoredClip
from liteframe.distill.clip_view import ClipView
from liteframe.distill.statistics import ChannelStatistics
from liteframe.files import durable_file

SETTINGS, STATISTICS, INDEX = "settings.json", "statistics.safetensors", "index.json"
# Open shards of a process; each keeps a mapping and some 50 kB of tables.
OPEN_SHARDS = 256
REBUILD = "delete this file and run `liteframe cache build` again with the same settings: it makes only what is missing"


@dataclass(frozen=True)
class CacheIndex:
    """All digests of a finished cache.

    Attributes:
        files: sha256 of settings and statistics by file name.
        shards: by their names.
    """

    files: Mapping[str, str]
    shards: Mapping[str, ShardInfo]

    def to_json(self) -> str:
        """Content of index.json."""
        shards = {name: asdict(info) for name, info in self.shards.items()}
        return json.dumps({"files": dict(self.files), "shards": shards}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, settings: CacheSettings) -> CacheIndex:
        """The index of a cache with these settings.

        Raises:
            ValueError: it names other files than the settings give, or values are missing.
        """
        values = parse_object(text)
        files, shards = values.get("files"), values.get("shards")
        if not isinstance(files, dict) or set(files) != {SETTINGS, STATISTICS} or not isinstance(shards, dict):
            raise ValueError(f"it must give digests of {SETTINGS}, {STATISTICS} and the shards, and of nothing else")
        if (count := shard_count(settings)) > len(shards):
            raise ValueError(f"it names {len(shards)} shards and the settings give {count}")
        keys = {key.name: key for key in all_shards(settings)}
        if set(shards) != set(keys):
            strange = sorted(set(shards) ^ set(keys))
            raise ValueError(f"it does not name the shards that the settings give: {', '.join(map(repr, strange[:5]))}")
        return cls(files, {name: ShardInfo.parse(shards[name], key) for name, key in keys.items()})


@dataclass(frozen=True)
class CachedClip:
    """One clip of a cache.

    Attributes:
        view: which clip it is; `view.frame_mask` tells the real frames.
        target: raw pooled teacher features [T',h,w,C], before clipping and standardization; bf16, or float32 where the
            codec is int8.
        frames: uint8 [T,H,W,3] at the size that the teacher saw, or None where the cache holds none.
        log_weights: float32 [T',h,w] of the target's tokens, or None where the cache holds none (see Pooled).
    """

    view: ClipView
    target: Tensor
    frames: np.ndarray | None
    log_weights: Tensor | None = None


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

    def __init__(self, folder: Path, settings: CacheSettings, index: CacheIndex, remote: str | None = None):
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
        remote = os.fspath(folder) if "://" in os.fspath(folder) else None
        root = Path(folder) if remote is None else _mirror(remote)
        if not (root / INDEX).is_file():
            state = "is not finished: run" if (root / SETTINGS).is_file() else "is not a target cache: make one with"
            raise ValueError(f"{root} {state} `liteframe cache build --config YAML -o {root} --views K`")
        data = _read_inside(root, SETTINGS)
        try:
            settings = CacheSettings.from_json(data.decode())
        except ValueError as error:
            raise ValueError(f"{root / SETTINGS}: {error}; copy the cache again, or build another") from error
        try:
            index = CacheIndex.parse(_read_inside(root, INDEX).decode(), settings)
            if index.files[SETTINGS] != hashlib.sha256(data).hexdigest():
                raise ValueError(f"{SETTINGS} does not have the digest that it names")
        except ValueError as error:
            raise ValueError(f"{root / INDEX}: {error}; {REBUILD}") from error
        return cls(root, settings, index, remote)

    @cached_property
    def statistics(self) -> ChannelStatistics:
        """Channel statistics of the targets.

        Raises:
            ValueError: the file is damaged.
        """
        data = _read_inside(self.folder, STATISTICS)
        if hashlib.sha256(data).hexdigest() != self.index.files[STATISTICS]:
            raise ValueError(
                f"{self.folder / STATISTICS} does not have the digest that {INDEX} names; copy the cache again, or "
                f"delete {self.folder} and build it anew"
            )
        return ChannelStatistics.from_bytes(data, self.settings.dim)

    @cached_property
    def codec(self) -> TargetCodec:
        """The codec that the targets were stored with, from settings and statistics."""
        return TargetCodec.of(self.settings, self.statistics)

    def read(self, split: Split, view: int, index: int) -> CachedClip | VideoError:
        """View `view` of video `index` of the split; the middle clip of a held-out video is view 0 of "val".

        A video that could not be read when the cache was built comes back as that error.

        Raises:
            IndexError: the cache does not cover it.
            ValueError: a file is missing or damaged; the message names it and the remedy.
        """
        clip = self.stored(split, view, index)
        if clip.failed:
            return VideoError(**clip.facts["failure"])
        seen, frames = ClipView.from_dict(clip.facts["view"]), None
        if clip.jpeg:
            frames = np.stack([decode_jpeg(file, seen.size) for file in clip.jpeg])  # [T,H,W,3]
        return CachedClip(seen, self.codec.decode(clip.encoded), frames, clip.encoded.get("log_weight"))

    def stored(self, split: Split, view: int, index: int) -> StoredClip:
        """The clip as it is stored.

        Raises:
            IndexError: the cache does not cover it.
            ValueError: a file is missing or damaged.
        """
        key, number = locate(self.settings, split, view, index)
        path = self.folder / f"{key.name}.safetensors"
        try:
            return self._shard(key, path).read(number)
        except (ValueError, OSError) as error:
            remedy = REBUILD if self.remote is None else f"delete this file: it is fetched again from {self.remote}"
            raise ValueError(f"{path}: {error}; {remedy}") from error

    def _shard(self, key: ShardKey, path: Path) -> Shard:
        if key.name in self._shards:
            self._shards.move_to_end(key.name)
            return self._shards[key.name]
        if self.remote is not None:
            _fetch(self.remote, path)
        _refuse_outside(path)
        info = self.index.shards[key.name]
        if (size := path.stat().st_size) != info.bytes:
            raise ValueError(f"it has {size} bytes and the index names {info.bytes}")
        shard = Shard(path, key, self.settings)
        if shard.info != info:
            raise ValueError("its tables do not have the digest that the index names")
        self._shards[key.name] = shard
        if len(self._shards) > OPEN_SHARDS:
            self._shards.popitem(last=False)
        return shard

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}


def _read_inside(folder: Path, name: str) -> bytes:
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


def _mirror(url: str) -> Path:
    """A local folder with the small files of a cache in object storage; shards follow one by one.

    It lies below XDG_CACHE_HOME (default ~/.cache) under the digest of the index, so another cache at the same address
    gets another folder.

    Raises:
        ValueError: the address cannot be read.
    """
    with _reading(url, INDEX) as file:
        index = file.read()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "liteframe" / "targets" / hashlib.sha256(index).hexdigest()[:32]
    for name in (SETTINGS, STATISTICS, INDEX):
        _fetch(url, folder / name)
    return folder


def _fetch(url: str, path: Path) -> None:
    """Copy a file of the cache at `url` to `path`, which has the file's own name, unless it is there.

    Workers may fetch the same file at the same time; each renames a whole one.

    Raises:
        ValueError: it cannot be read.
    """
    if not path.exists():
        with _reading(url, path.name) as source, durable_file(path) as target:
            shutil.copyfileobj(source, target, 1 << 20)


def _reading(url: str, name: str) -> fsspec.core.OpenFile:
    address = f"{url.rstrip('/')}/{name}"
    try:
        return fsspec.open(address, "rb").open()
    except ImportError as error:
        raise ValueError(f"{address}: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{address} cannot be read ({error}); is it a finished target cache?") from error
