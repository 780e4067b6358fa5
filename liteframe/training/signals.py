"""Signals that ask a run to stop: a flag that all ranks agree on at the next place where stopping loses nothing.

SIGINT is Ctrl-C. SIGTERM is `kill`, and SLURM's preemption. SIGUSR1 is what `sbatch --signal=USR1@<seconds>` sends
before the time limit. A handler that saved at once would save in the middle of a step, on one rank.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from liteframe.training.report import tell

PATIENCE = 30.0


def job_id() -> str | None:
    """The batch job that this process belongs to, as `scontrol` names it; None outside of one."""
    if SLURMEnvironment.job_id() is None:  # interactive jobs cannot be requeued
        return None
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> None:
    """Requeue this process's job and say what came of it; nothing outside SLURM."""
    job = job_id()
    if job is None:
        return
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        outcome = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        outcome = str(error)
    tell(f"job {job} is requeued" if not outcome else f"job {job} is NOT requeued: {' '.join(command)}: {outcome}")


def slurm_plugins() -> list[SLURMEnvironment]:
    """SLURM without Lightning's own requeueing, which saves from inside a signal handler."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """What this process was told. Outside of the training loop there is nothing to finish, and it ends at once.

    Attributes:
        received: the signal that came while stopping was deferred.
        requeue: whether the job can go on by itself when SLURM starts it again.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.requeue = False
        self._deferred = False
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, a signal stops the run; afterwards signals are what they were before."""
        outermost = not self._previous
        self._install()
        try:
            yield
        finally:
            self.at_once()
            if outermost:
                self._restore()

    def defer(self) -> None:
        """From here on there are places to stop at. Takes the signals back if somebody else has taken them."""
        if not self._deferred:
            self.received, self._deferred = None, True
        self._install()

    def at_once(self) -> None:
        """From here on there is nothing to wait for."""
        self._deferred = False

    def agreed(self, trainer: Trainer) -> int | None:
        """The signal that any rank received, on every rank; all ranks must ask at the same place."""
        number = self.received or 0
        if trainer.world_size > 1:
            own = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(own, reduce_op="max"))  # type: ignore[arg-type]
        return number or None

    def leave(self, number: int, state: str) -> NoReturn:
        """End this process as one that the signal ended, after telling where things stand and requeueing the job.

        Raises:
            SystemExit: always, with 128 + number.
        """
        self._farewell(number, state)
        raise SystemExit(128 + number)

    @rank_zero_only
    def _farewell(self, number: int, state: str) -> None:
        tell(f"\n{signal.Signals(number).name}: {state}")
        if self.requeue and number != signal.SIGINT:
            requeue()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred:
            if number == signal.SIGINT:
                signal.default_int_handler(number, frame)
            self.leave(number, "stopped before the first step or after the last; continue with --resume auto")
        if number == signal.SIGINT and self.received is not None:
            raise SystemExit(128 + number)
        self.received = number

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            found = {int(number): signal.signal(number, self._handle) for number in STOP_SIGNALS}
            self._previous = self._previous or found

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}


# Signals belong to the process, and so does what they say.
STOP = StopRequest()


def leave_if_told(trainer: Trainer, state: str) -> None:
    """Stop here if any rank was told to; all ranks must ask at the same place.

    Raises:
        SystemExit: with 128 + the signal's number.
    """
    if (number := STOP.agreed(trainer)) is not None:
        STOP.leave(number, state)
