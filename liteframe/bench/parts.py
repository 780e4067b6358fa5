"""A long measurement in parts: kept part by part, gone on with after a stop, and over in time.

What has been found is on the disk after each row: a borrowed machine may be gone a minute later.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.files import write_json
from liteframe.texts import read_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of a measurement.

    Attributes:
        name: in the record.
        rows: yields what it finds; a row whose "status" is "wrong", or begins with "failed", makes the part so.
        after: parts that must be "ok" first: a speed counts only where the results are right.
        seconds: it is ended after the row at which it has taken so long, where others still wait; None: never.
    """

    name: str
    rows: Callable[[], Iterable[Row]]
    after: tuple[str, ...] = ()
    seconds: float | None = None


class Measurement:
    """Runs parts one after the other and keeps their record in a file.

    Args:
        path: of the record, JSON.
        fixed: machine, versions and settings, with which the record begins. One that is there already is gone on with:
            its parts that are "ok" are kept.
        facts: what else the record says, of the last time that it was gone on with.
        minutes: when they are over, the part that runs is recorded as stopped and the process ends with status 1.
        save: told of the record whenever it has been written, to make tables of it.

    Raises:
        ValueError: the record is of another machine, other versions or other settings.
    """

    def __init__(
        self,
        path: Path,
        fixed: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        minutes: float | None = None,
        save: Callable[[Row], None] = lambda record: None,
    ):
        self.path, self._save, self._lock = path, save, threading.RLock()
        self.began = time.monotonic()
        self.deadline = None if minutes is None else self.began + 60 * minutes
        self.record: Row = {**fixed, **facts, "parts": _kept(path, fixed)}
        self.running: str | None = None

    @property
    def left(self) -> float:
        """Seconds until time is up."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress: since when, how long still, what comes."""
        left = "" if self.deadline is None else f", {max(0.0, self.left):.0f} s left"
        print(f"[{time.monotonic() - self.began:.0f} s{left}] {self.running or ''}: {text}", flush=True)

    def run(self, parts: Sequence[Part]) -> int:
        """Run the parts that are not done; the status of the process: 0 where all are ok, 1 where one is not."""
        timer = None
        if self.deadline is not None:
            timer = threading.Timer(max(0.0, self.left), self._time_is_up)
            timer.daemon = True
            timer.start()
        try:
            for number, part in enumerate(parts):
                if self.record["parts"].get(part.name, {}).get("status") != "ok":
                    self._run(part, last=number == len(parts) - 1)
        finally:
            if timer is not None:
                timer.cancel()
        return int(any(self.record["parts"][part.name]["status"] != "ok" for part in parts))

    def rows(self, name: str) -> list[Row]:
        """What a part has found so far."""
        return self.record["parts"].get(name, {}).get("rows", [])

    def _run(self, part: Part, last: bool) -> None:
        found: Row = {"status": "running", "seconds": 0.0, "rows": []}
        self.record["parts"][part.name] = found
        self.running = part.name
        began = time.monotonic()
        if missing := [name for name in part.after if self.record["parts"].get(name, {}).get("status") != "ok"]:
            found["status"] = f"not measured: {', '.join(missing)} did not pass"
        else:
            self.say("begins")
            try:
                for row in part.rows():
                    with self._lock:
                        found["rows"].append(row)
                        found["seconds"] = time.monotonic() - began
                        self.write()
                    if part.seconds is not None and not last and found["seconds"] > part.seconds:
                        found["status"] = f"stopped after {part.seconds:.0f} s: other parts waited"
                        break
                else:
                    said = [str(row.get("status", "ok")) for row in found["rows"]]
                    failed = "failed in part" if any(one.startswith("failed") for one in said) else "ok"
                    found["status"] = "wrong" if "wrong" in said else failed
            except ModuleNotFoundError as error:
                found |= {"status": f"skipped: {error.name} is not installed"}
            except Exception as error:  # whatever it is: the other parts go on
                said = str(error).strip().splitlines() or [""]
                found |= {"status": f"failed: {type(error).__name__}: {said[0][:300]}", "error": traceback.format_exc()}
        found["seconds"] = time.monotonic() - began
        with self._lock:
            self.write()
        self.say(found["status"])
        self.running = None

    def write(self) -> None:
        """Put the record on the disk."""
        write_json(self.path, self.record)
        self._save(self.record)

    def _time_is_up(self) -> None:
        with self._lock:
            if self.running is not None:
                self.record["parts"][self.running]["status"] = "stopped: time was up"
            self.write()
            self.say("time was up; what was found is in " + str(self.path))
            os._exit(1)


def _kept(path: Path, fixed: Mapping[str, Any]) -> Row:
    """The parts of a record that need not run again."""
    if not path.is_file():
        return {}
    before = read_json(path, "remove it, or name another folder")
    for name, value in fixed.items():
        if before.get(name) != value:
            raise ValueError(
                f"{path} was measured with {name} {before.get(name)!r}, now it is {value!r}; name another folder"
            )
    return {name: part for name, part in before["parts"].items() if part["status"] == "ok"}
