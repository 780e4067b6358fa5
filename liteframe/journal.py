"""Rows that are on the disk one by one, as they are known: what was killed goes on where it was."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from liteframe.files import json_bytes
from liteframe.texts import parse_json, read_jsonl


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


class SharedJournal:
    """A JSONL file that several processes append to, such as the ranks of a run; of rows with one key the first counts.

    A line that is torn, as by a full disk, is passed over.

    Args:
        path: of a file that is made, with its folder, when something is added.
        key: what tells one row from another.

    Attributes:
        rows: by key, in the order of the file, as far as it has been read.
    """

    def __init__(self, path: Path, key: Callable[[dict[str, Any]], Hashable]):
        self.path, self.rows = path, dict[Hashable, dict[str, Any]]()
        self._key, self._read_to = key, 0

    def read(self) -> None:
        """Take note of what others have added."""
        if self.path.is_file():
            self.add(())

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the rows that neither this process nor another has added."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._read_to)
            found = file.read()
            for row in _whole_rows(found):
                self.rows.setdefault(self._key(row), row)
            fresh = {key: row for row in rows if (key := self._key(row)) not in self.rows}
            lines = b"".join(map(json_bytes, fresh.values()))
            file.write(b"\n" + lines if lines and found[-1:] not in (b"", b"\n") else lines)
            file.flush()
            self.rows.update(fresh)
            self._read_to = file.tell()


def _whole_rows(data: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            rows.append(parse_json(line, "a row"))
    return [row for row in rows if isinstance(row, dict)]
