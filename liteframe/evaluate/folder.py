"""The folder of one evaluation: settings.json, answers.jsonl (a line a question, as it is answered), scores.json.

A line is on the disk as a whole or not at all: it is written in one call, and a torn last line (a crash in the middle)
is dropped when the folder is opened again. Questions that have a reply are not asked again; those whose video could not
be read are, and their last line counts.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from liteframe.files import read_json, write_json

FORMAT = 1


class EvalFolder:
    """Opens a new folder, or one that was begun with the same settings.

    Args:
        path: the folder.
        settings: everything that determines the scores, JSON-able.
        session: where, when and with which command this run goes; kept, not compared.

    Attributes:
        rows: the last line of each question, by id.

    Raises:
        ValueError: the folder was begun with other settings (they are named), is in use, or holds something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any], session: dict[str, Any]):
        self.path = path
        self.answers, self.scores = path / "answers.jsonl", path / "scores.json"
        if path.exists() and not path.is_dir():
            raise ValueError(f"-o {path} is a file; name a folder")
        before = self._former_settings()
        settings = {"format": FORMAT, **settings}
        sessions = [session]
        if before is not None:
            sessions = [*before.pop("sessions"), session]
            _refuse_other_settings(path, before, json.loads(json.dumps(settings)))
        path.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.answers, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ValueError(
                f"-o {path}: another evaluation writes to it; wait for it or name another folder"
            ) from None
        write_json(path / "settings.json", {**settings, "sessions": sessions})
        self.rows = self._read()

    def append(self, row: dict[str, Any]) -> None:
        """Keep the outcome of one question."""
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.answers}: only {written} of {len(line)} bytes could be written; is the disk full?")
        self.rows[row["id"]] = row

    def sync(self) -> None:
        """Make what was appended survive a loss of power."""
        os.fsync(self._file)

    def __enter__(self) -> EvalFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._file)

    def _former_settings(self) -> dict[str, Any] | None:
        file = self.path / "settings.json"
        if file.is_file():
            return read_json(file, "name another folder")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"-o {self.path} holds other files and no settings.json; name another folder")
        return None

    def _read(self) -> dict[str, dict[str, Any]]:
        data = self.answers.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._file, whole)
        rows = {}
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                rows[row["id"]] = row
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.answers}:{number}: no line of an evaluation ({error}); remove it, and it is asked again"
                ) from error
        return rows


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner` -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _refuse_other_settings(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = _flatten(before), _flatten(now)
    other = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if other:
        named = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in other)
        raise ValueError(f"-o {path} was begun with other settings: {named}. Use the former ones or another folder")
