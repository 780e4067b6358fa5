"""Reads a finished cache, from a folder or from object storage: any clip by split, view and index."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

import fsspec

from liteframe.files import durable_file
from liteframe.training.cache.settings import S, Settings, ShardKey, all_shards, locate, parse_object, shard_count
from liteframe.training.cache.shard import Shard, ShardInfo, StoredClip

SETTINGS, INDEX = "settings.json", "index.json"
# Open shards of a process; each keeps a mapping and some 50 kB of tables.
OPEN_SHARDS = 256
C = TypeVar("C", bound="Cache[Any]")


@dataclass(frozen=True)
class CacheIndex:
    """All digests of a finished cache.

    Attributes:
        files: sha256 of the settings and the small files beside them, by file name.
        shards: by their names.
    """

    files: Mapping[str, str]
    shards: Mapping[str, ShardInfo]

    def to_json(self) -> str:
        """Content of index.json."""
        shards = {name: asdict(info) for name, info in self.shards.items()}
        return json.dumps({"files": dict(self.files), "shards": shards}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, settings: Settings) -> CacheIndex:
        """The index of a cache with these settings.

        Raises:
            ValueError: it names other files than the settings give, or values are missing.
        """
        values = parse_object(text)
        files, shards = values.get("files"), values.get("shards")
        small = (SETTINGS, *settings.small_files)
        if not isinstance(files, dict) or set(files) != set(small) or not isinstance(shards, dict):
            raise ValueError(f"it must give digests of {', '.join(small)} and the shards, and of nothing else")
        if (count := shard_count(settings)) > len(shards):
            raise ValueError(f"it names {len(shards)} shards and the settings give {count}")
        keys = {key.name: key for key in all_shards(settings)}
        if set(shards) != set(keys):
            strange = sorted(set(shards) ^ set(keys))
            raise ValueError(f"it does not name the shards that the settings give: {', '.join(map(repr, strange[:5]))}")
        return cls(files, {name: ShardInfo.parse(shards[name], key) for name, key in keys.items()})


class Cache(Generic[S]):
    """A finished cache; a kind of cache says what its settings are and what is read of a clip.

    Shards are opened when they are first used; every byte that is returned was checked against a digest that the index
    leads to. An object can be pickled into workers, each of which opens shards of its own.

    Args:
        folder: of the cache, or its local copy.
        settings: what its bytes follow from.
        index: digests.
        remote: address that missing shards are fetched from.

    Attributes:
        settings_class: of this kind.
    """

    settings_class: type[S]

    def __init__(self, folder: Path, settings: S, index: CacheIndex, remote: str | None = None):
        self.folder, self.settings, self.index, self.remote = folder, settings, index, remote
        self._shards: OrderedDict[str, Shard] = OrderedDict()

    @classmethod
    def open(cls: type[C], folder: str | PathLike[str]) -> C:
        """A finished cache.

        Args:
            folder: its folder, or the address of one in object storage (s3://bucket/cache, gs://..., whatever fsspec
                knows); shards are then copied to a local folder when they are first used.

        Raises:
            ValueError: the folder holds none, or its small files are damaged.
        """
        kind = cls.settings_class
        remote = os.fspath(folder) if "://" in os.fspath(folder) else None
        root = Path(folder) if remote is None else _mirror(remote, kind)
        if not (root / INDEX).is_file():
            state = "is not finished: run" if (root / SETTINGS).is_file() else f"is not a {kind.kind}: make one with"
            raise ValueError(f"{root} {state} `{kind.build.replace('CACHE', str(root))}`")
        data = _read_inside(root, SETTINGS, kind)
        try:
            settings = kind.from_json(data.decode())
        except ValueError as error:
            raise ValueError(f"{root / SETTINGS}: {error}; copy the cache again, or build another") from error
        try:
            index = CacheIndex.parse(_read_inside(root, INDEX, kind).decode(), settings)
            if index.files[SETTINGS] != hashlib.sha256(data).hexdigest():
                raise ValueError(f"{SETTINGS} does not have the digest that it names")
        except ValueError as error:
            raise ValueError(f"{root / INDEX}: {error}; {_rebuild(kind)}") from error
        return cls(root, settings, index, remote)

    @property
    def digest(self) -> str:
        """The start of a digest over all of it, by which a resumed run knows it again."""
        return hashlib.sha256(self.index.to_json().encode()).hexdigest()[:16]

    def small_file(self, name: str) -> bytes:
        """One of the files that this kind has beside the settings.

        Raises:
            ValueError: it is missing or damaged.
        """
        data = _read_inside(self.folder, name, self.settings_class)
        if hashlib.sha256(data).hexdigest() != self.index.files[name]:
            raise ValueError(
                f"{self.folder / name} does not have the digest that {INDEX} names; copy the cache again, or "
                f"delete {self.folder} and build it anew"
            )
        return data

    def check_small_files(self) -> None:
        """Read them; raises ValueError if one is damaged."""
        for name in self.settings.small_files:
            self.small_file(name)

    def refuse_other(self, option: str, run: Mapping[str, Any]) -> None:
        """Compare with a run that shall read this cache.

        The run may have another seed: the views are those that the cache drew, and the run's seed orders them.

        Args:
            option: that names the cache.
            run: the run's values of fields of the settings.

        Raises:
            ValueError: they differ; names each value.
        """
        here = dataclasses.replace(self.settings, **{**run, "seed": asdict(self.settings)["seed"]})
        if differences := self.settings.differences(here):
            raise ValueError(
                f"--{option} {self.folder} holds other {self.settings.holds}: {'; '.join(differences)}. Take the "
                f"cache's values, or build another cache with this run's: {self.settings.build}"
            )

    def stored(self, split: str, view: int, index: int) -> StoredClip:
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
            built = _rebuild(self.settings_class)
            remedy = built if self.remote is None else f"delete this file: it is fetched again from {self.remote}"
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


def read_settings(folder: str | PathLike[str]) -> Mapping[str, Any]:
    """The settings of a cache of whatever kind, finished or not, from its folder or address.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are no JSON object, or the address cannot be read.
    """
    if "://" in os.fspath(folder):
        with _reading(os.fspath(folder), SETTINGS) as file:
            return parse_object(file.read().decode())
    path = Path(folder) / SETTINGS
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; copy the cache again, or build another") from error


def _rebuild(kind: type[Settings]) -> str:
    command = " ".join(kind.build.split()[:3])
    return f"delete this file and run `{command}` again with the same settings: it makes only what is missing"


def _read_inside(folder: Path, name: str, kind: type[Settings]) -> bytes:
    """The bytes of a small file of a cache.

    Raises:
        ValueError: it is missing, or a link that leads elsewhere.
    """
    path = folder / name
    try:
        _refuse_outside(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; copy the cache again, or {_rebuild(kind)}") from error


def _refuse_outside(path: Path) -> None:
    if path.resolve().parent != path.parent.resolve():
        raise ValueError(f"it is a link to {path.resolve()}, outside of the cache")


def _mirror(url: str, kind: type[Settings]) -> Path:
    """A local folder with the small files of a cache in object storage; shards follow one by one.

    It lies below XDG_CACHE_HOME (default ~/.cache) under the digest of the index, so another cache at the same address
    gets another folder.

    Raises:
        ValueError: the address cannot be read.
    """
    with _reading(url, INDEX) as file:
        index = file.read()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "liteframe" / kind.holds / hashlib.sha256(index).hexdigest()[:32]
    for name in (SETTINGS, *kind.small_files, INDEX):
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
        raise ValueError(f"{address} cannot be read ({error}); is it a finished cache?") from error
