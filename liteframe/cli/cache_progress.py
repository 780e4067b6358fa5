"""How far a cache is: a bar with the time left on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from liteframe.training.progress import PLAIN_SECONDS, duration


class CacheProgress:
    """Shows the first process's share of the work; the others stay silent.

    Args:
        rank: number of this process.
        processes: how many share the work.
    """

    def __init__(self, rank: int = 0, processes: int = 1):
        console = Console(stderr=True)
        self.rank, self.terminal = rank, console.is_terminal and rank == 0
        self.note = f" (1 of {processes} processes)" if processes > 1 else ""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        self._bar = Progress(
            TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not self.terminal
        )
        self._tasks: dict[str, TaskID] = {}
        self._began = self._printed = 0.0

    def __enter__(self) -> CacheProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print above the bar."""
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` things are done."""
        now = time.monotonic()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what + self.note, total=total)
            self._began = self._printed = now
        self._bar.update(self._tasks[what], completed=done)
        if self.rank or self.terminal or (now - self._printed < PLAIN_SECONDS and done < total):
            return
        self._printed = now
        left = (now - self._began) / max(1, done) * (total - done)
        print(f"{what} {done}/{total}{self.note}  ETA {duration(left)}", file=sys.stderr, flush=True)
