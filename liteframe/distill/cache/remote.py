"""A cache in object storage: files come to a local folder when they are first needed, and stay there."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import fsspec

from liteframe.distill.cache.layout import INDEX, SETTINGS, STATISTICS


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether this is an address such as s3://bucket/cache rather than a folder."""
    return "://" in os.fspath(folder)


def mirror(url: str) -> Path:
    """A local folder with the small files of a remote cache; shards follow one by one (`fetch`).

    It lies below XDG_CACHE_HOME (default ~/.cache) under the digest of the index, so another cache at the same address
    gets another folder.

    Raises:
        ValueError: the address cannot be read.
    """
    with _reading(url, INDEX) as file:
        index = file.read()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "liteframe" / "targets" / hashlib.sha256(index).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    for name in (SETTINGS, STATISTICS, INDEX):
        fetch(url, folder / name)
    return folder


def fetch(url: str, path: Path) -> None:
    """Copy a file of the cache at `url` to `path`, which has the file's own name; nothing happens if it is there.

    Raises:
        ValueError: it cannot be read.
    """
    if path.exists():
        return
    # Workers may fetch the same file at the same time; each renames a whole one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _reading(url, path.name) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _reading(url: str, name: str) -> fsspec.core.OpenFile:
    address = f"{url.rstrip('/')}/{name}"
    try:
        return fsspec.open(address, "rb").open()
    except ImportError as error:
        raise ValueError(f"{address}: {error}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{address} cannot be read ({error}); is it a finished target cache?") from error
