"""Rows that are on the disk one by one, as they are known: a command that was killed goes on where it was."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from liteframe.files import json_bytes
from liteframe.texts import read_jsonl


class Journal:
    """A JSONL file of one writer.

    A row is there as a whole or not at all: it is written in one call, and a torn last line is dropped on opening.

    Args:
        path: of a file that is made if there is none; its folder exists.

    Raises:
        ValueError: another process writes to it.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ValueError(f"another process writes to {path}; wait for it or name another place") from None
        self._drop_torn_line()

    def rows(self, remedy: str = "") -> Iterator[tuple[str, Any]]:
        """What was written before, with where it stands; errors as of read_jsonl."""
        return read_jsonl(self.path, remedy)

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row, whatever becomes of this process."""
        line = json_bytes(row)
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes could be written; is the disk full?")

    def sync(self) -> None:
        """Make what was appended survive a loss of power."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let others write to it."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _drop_torn_line(self) -> None:
        end = size = os.fstat(self._file).st_size
        while end and os.pread(self._file, 1, end - 1) != b"\n":
            end -= 1
        if end < size:
            os.ftruncate(self._file, end)
