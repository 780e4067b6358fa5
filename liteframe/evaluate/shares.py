"""Several processes that ask the questions of one folder: a video is asked about by whoever takes it first.

No process leads and none sends messages, so one that dies costs the others nothing: what it had taken is free again at
once, since the system keeps locks only as long as their process lives. The folder has to lie where all processes see
each other's locks: on one machine, or on a file system with POSIX locks.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

LOCK = "ranks.lock"
INTERACTIVE = ("bash", "sh", "interactive")


class Rank(NamedTuple):
    """Which of several processes this is.

    Attributes:
        number: from 0; the first reports.
        ranks: how many there are.
        local: number on this machine, by which GPUs are shared out.
    """

    number: int = 0
    ranks: int = 1
    local: int = 0


def this_rank() -> Rank:
    """What torchrun or srun says; without them, the only one."""
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        return Rank(*(int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    tasks = int(os.environ.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return Rank(int(os.environ["SLURM_PROCID"]), tasks, int(os.environ.get("SLURM_LOCALID", "0")))
    return Rank()


class Shares:
    """Places, each of which one process takes and keeps until it ends; a process alone has them all.

    Args:
        folder: that all share; made if it is not there.
        rank: of this process.
    """

    def __init__(self, folder: Path, rank: Rank):
        self._file: int | None = None
        if rank.ranks > 1:
            folder.mkdir(parents=True, exist_ok=True)
            # The only descriptor of this file: closing a second one would let go of what was taken by the first.
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, place: int) -> bool:
        """Whether a place is this process's, now or from before; does not wait."""
        return self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + place)

    def wait_for_all(self) -> None:
        """Take all places, as soon as the other processes have ended."""
        self._lock(fcntl.LOCK_EX, 0, 1)

    def __enter__(self) -> Shares:
        """Alone, until `begin`: one after the other, processes find or write what the folder is for."""
        self._lock(fcntl.LOCK_EX, 1, 0)
        return self

    def begin(self) -> None:
        """Let the next process in."""
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            os.close(self._file)

    def _lock(self, how: int, length: int, start: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, how, length, start)
        except (BlockingIOError, PermissionError):  # what systems say where another process has it
            return False
        return True
