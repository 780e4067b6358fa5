"""Files that are whole or absent, whatever kills the writer: written beside their place, flushed, then renamed."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

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
