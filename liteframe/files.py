"""Files that are whole or absent, whatever kills the writer: written beside their place, flushed, then renamed."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO

INDEX = "model.safetensors.index.json"


def check_weight_index(source: Any) -> None:
    """Refuse a local checkpoint whose index names anything but safetensors files of its own folder.

    transformers joins the names to the folder as they are; files of a hub id lie in its cache, under the cache's names.

    Raises:
        ValueError: the index is damaged, or names another place or another format.
    """
    path = Path(os.fspath(source)) / INDEX
    if not path.is_file():
        return
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); copy or download the checkpoint again") from error
    for name in names:
        plain = isinstance(name, str) and name == PurePath(name).name and "\\" not in name and "\0" not in name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{path} names {name!r}; only safetensors files of the same folder are read. "
                "Do not trust this checkpoint"
            )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its own folder, flush it to the disk, then rename it."""
    with durable_file(path, needed=len(data)) as file:
        file.write(data)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically; numbers that are not finite, as in the loss of a skipped step, become null."""
    write_atomically(path, (json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Full disk, spent quota, largest file size of the process (ulimit -f).
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OutOfSpaceError(OSError):
    """A file does not fit on its file system; what stood in its place is untouched."""


class HashingFile:
    """Passes writes on, and keeps their digest and number.

    A writer in C++ may hide an error of `write` behind one of its own; the first is kept in `error`.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        try:
            count = self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._digest.update(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of what was written so far."""
        return self._digest.hexdigest()


@contextmanager
def durable_file(path: Path, needed: int | None = None) -> Iterator[HashingFile]:
    """Write `path` in one piece.

    The temporary file lies in the same folder, since a rename from another file system is a copy. Left-overs of killed
    processes are named `.<name>.<process>.tmp`.

    Args:
        path: final name; its folder is made.
        needed: size in bytes, if known, for the message.

    Raises:
        OutOfSpaceError: the file does not fit; `path` is as it was.
        OSError: it cannot be written for another reason; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    writer: HashingFile | None = None
    try:
        with temporary.open("wb") as file:
            writer = HashingFile(file)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = (writer.error if writer else None) or error
        if not isinstance(cause, OSError):
            raise
        if cause.errno in OUT_OF_SPACE:
            raise OutOfSpaceError(cause.errno, _no_space(path, needed, cause)) from error
        raise cause from None
    finally:
        temporary.unlink(missing_ok=True)


def fsync_path(path: Path) -> None:
    """Make what a file holds, or the renames within a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_space(path: Path, needed: int | None, error: OSError) -> str:
    size = "more bytes than there are" if needed is None else f"at least {needed:,} bytes"
    return (
        f"{path} needs {size}, and {shutil.disk_usage(path.parent).free:,} bytes are free on its file system "
        f"({error.strerror})"
    )
