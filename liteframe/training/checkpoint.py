"""checkpoints/last.ckpt: written so that it is always loadable, in time, on request and when the run is told to stop.

Lightning's own save moves the file from TMPDIR and never flushes it, and its signal handler saves from inside the
handler. Here the file is written beside its final place, and a signal only sets a flag that is read between two steps.
"""

import os
import pickle
import signal
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from liteframe.training.run_folder import RunFolder

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints appear complete or not at all, and are read with `weights_only=True`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write to a temporary file in the same folder, flush it and the folder to the disk around a rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of tensors and plain values; anything else is refused, whatever `weights_only` says.

        Raises:
            ValueError: the file is damaged or holds other objects.
        """
        remedy = "start a new run, with --init_from RUN/encoder if an encoder was saved"
        # torch.load would try its old format on anything else.
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not a loadable checkpoint (no complete zip archive); {remedy}")
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except (RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} is not a loadable checkpoint ({reason}); {remedy}") from error


class LastCheckpoint(Callback):
    """Keeps last.ckpt: at the first step, every `every_n_steps`, before each validation, at the end and on a signal.

    SIGINT (Ctrl-C) and SIGTERM (`kill`) end the run at the next step boundary, agreed among all ranks, with exit code
    130 or 143; a second Ctrl-C ends it at once. Before the first step they mean what they mean everywhere.

    Args:
        every_n_steps: optimizer steps between two saves.
    """

    def __init__(self, every_n_steps: int = 500):
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._received: int | None = None
        self._training = False
        self._saved_step: int | None = None
        self._previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning has installed its own handlers by now, and restores the original ones afterwards."""
        self._install()
        self._received, self._training = None, True
        self._saved_step = trainer.global_step if RunFolder(trainer.default_root_dir).last_checkpoint.exists() else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to; stop if any rank was told to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop = trainer.strategy.reduce_boolean_decision(self._received is not None, all=False)
        if stop or self._saved_step is None or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        if stop:
            self._exit(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save first, so that a signal during a long validation loses nothing."""
        if self._training and self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop between two validation batches; the weights are those saved when validation started."""
        if self._training and trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self._exit(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        if self._saved_step != trainer.global_step:
            self._save(trainer)
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _save(self, trainer: Trainer) -> None:
        # In Lightning's words "weights only" would leave the optimizer out.
        trainer.save_checkpoint(RunFolder(trainer.default_root_dir).last_checkpoint, weights_only=False)
        self._saved_step = trainer.global_step

    def _exit(self, trainer: Trainer) -> None:
        number = self._received or signal.SIGTERM
        if trainer.is_global_zero:
            path = RunFolder(trainer.default_root_dir).last_checkpoint
            print(
                f"\n{signal.Signals(number).name}: stopped at step {trainer.global_step}; state is in {path}, "
                "continue with --resume",
                file=sys.stderr,
                flush=True,
            )
        raise SystemExit(128 + number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise SystemExit(128 + number)
        self._received = number

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}

    def _restore(self) -> None:
        self._training = False
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
