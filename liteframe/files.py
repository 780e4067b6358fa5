"""Files that are whole or absent, whatever kills the writer; JSON written; digests.

What is written lies beside its place, as `.<name>.<process>.tmp`, until it is complete; then it is renamed.
"""

import errno
import hashlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name in its own folder, flush it to the disk, then rename it."""
    with durable_file(path, needed=len(data)) as file:
        file.write(data)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON atomically; numbers that are not finite, as in the loss of a skipped step, become null."""
    write_atomically(path, json_bytes(_finite(values), indent=2))


def write_jsonl(rows: Iterable[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write one line of JSON a row, all of them or none."""
    write_lines(map(json_bytes, rows), path)


def write_lines(lines: Iterable[bytes], path: str | os.PathLike[str]) -> None:
    """Write lines that have their ends, all of them or none."""
    with durable_file(Path(path)) as file:
        for line in lines:
            file.write(line)


def json_bytes(value: Any, **options: Any) -> bytes:
    r"""A value as JSON in UTF-8, and a line end.

    A file's name need not be UTF-8: Python holds its other bytes as lone surrogates, which are written as JSON's
    `\udcff`, so that whoever reads them opens the same file.

    Args:
        value: JSON-able.
        **options: of json.dumps.
    """
    return (json.dumps(value, ensure_ascii=False, **options) + "\n").encode("utf-8", "backslashreplace")


def show_any_name() -> None:
    """Let this process print names that are not UTF-8, or not in the terminal's encoding, with backslashes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def file_digest(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        """Write to the file and to the digest; returns the bytes written, and keeps the first OSError."""
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file or folder, which takes its place when the block ends well, and vanishes if not.

    For writers that take a path. Nothing is flushed to the disk, as `durable_file` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str], *, folder: bool = False) -> None:
    """Refuse, before the work, what could not be written after it.

    Args:
        path: that a command will write; its folder is made.
        folder: whether a folder is meant.

    Raises:
        ValueError: a folder stands where a file should, the other way round, or nothing can be written there.
    """
    path = Path(path)
    try:
        if path.exists() and path.is_dir() != folder:
            kinds = ("a folder; name a file", "a file; name a folder")
            raise ValueError(f"the output {path} is {kinds[folder]}")
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (path / "x", path) if folder and path.exists() else (path,):
            temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
            temporary.touch()  # access rights say nothing to root, nor of disks that are read-only or full
            temporary.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"the output {path} cannot be made: {path.parent} is not a folder") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"the output {path} cannot be written ({reason}); name another place") from error


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
