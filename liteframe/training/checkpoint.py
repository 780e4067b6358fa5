"""The newest state of a run is on the disk in time, before validation, at the end, and when the run is told to stop."""

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from liteframe.training.checkpoint_folder import AtomicCheckpointIO, NamedCheckpoint
from liteframe.training.report import tell
from liteframe.training.run_folder import RunFolder
from liteframe.training.signals import STOP


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class LastCheckpoint(Callback):
    """Saves at the first step, every `every_n_steps`, before each validation, at the end and on a signal.

    SIGINT (Ctrl-C), SIGTERM (`kill`, SLURM's preemption) and SIGUSR1 (SLURM's --signal) end the run at the next step
    boundary, agreed among all ranks, with exit code 128 + signal; a second Ctrl-C ends it at once. While the target
    statistics are measured they end it between two batches; before and after there is nothing to lose, and they end
    it at once. It must be the last of the trainer's callbacks: what the others do at the end of a step belongs to it.

    Args:
        every_n_steps: optimizer steps between two saves.
    """

    def __init__(self, every_n_steps: int = 500):
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._training = False
        self._saved_step: int | None = None
        self._whole: NamedCheckpoint | None = None
        self._rng: list[dict[str, Tensor]] | None = None
        self._listening = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear away what killed processes have left."""
        if stage == "fit" and trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).clean()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listening.enter_context(STOP.listening())
        STOP.defer()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember what the run goes on from: it stays on the disk until the next one is."""
        self._rng, self._saved_step = checkpoint["rng"], checkpoint["global_step"]
        name = Path(str(trainer.ckpt_path)).name
        named = RunFolder(trainer.default_root_dir).checkpoints.named()
        self._whole = next((checkpoint for checkpoint in named if checkpoint.file == name), None)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the random number generators of all ranks."""
        checkpoint["rng"] = gather_rng_states(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has installed handlers of its own by now."""
        STOP.defer()
        self._training = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Put the generators where they were, after all that starting a run draws from them."""
        if self._rng is None:
            return
        if len(self._rng) == trainer.world_size:
            set_rng_state(self._rng[trainer.global_rank], trainer.strategy.root_device)
        else:
            tell(
                f"the run had {len(self._rng)} processes and has {trainer.world_size}: clips and their order stay, "
                "random numbers drawn from here on (dropout) do not"
            )
        self._rng = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time to; stop if any rank was told to."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        number = STOP.agreed(trainer)
        if number or self._saved_step is None or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        if number:
            self._leave(trainer, number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save first, so that a signal or a kill during a long validation loses nothing."""
        if self._training:
            self._save(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Stop between two validation batches; the weights are those saved when validation started."""
        if self._training and (number := STOP.agreed(trainer)):
            self._leave(trainer, number)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)
        if number := STOP.agreed(trainer):
            self._leave(trainer, number)
        STOP.at_once()
        self._training = False

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._listening.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False
        self._listening.close()

    def _save(self, trainer: Trainer) -> None:
        """Write and name the state of this step; a failure on the writing rank ends all ranks.

        Raises:
            CheckpointError: it could not be written; the previous one is as it was.
        """
        if self._saved_step == trainer.global_step:
            return
        step, folder = trainer.global_step, RunFolder(trainer.default_root_dir).checkpoints
        problem = None
        try:
            # In Lightning's words "weights only" would leave the optimizer out.
            trainer.save_checkpoint(folder.file(step), weights_only=False)
        except OSError as error:
            problem = error.strerror or str(error)
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks wait
        if trainer.is_global_zero and problem is None:
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, AtomicCheckpointIO)
            try:
                self._whole = folder.add(step, io.written.bytes, io.written.sha256, previous=self._whole)
            except OSError as error:
                problem = error.strerror or str(error)
        if problem := trainer.strategy.broadcast(problem):
            before = (
                f"{self._whole.file} is untouched; continue from it with --resume"
                if self._whole
                else "it was the first"
            )
            raise CheckpointError(f"the checkpoint of step {step} could not be written: {problem}. {before}")
        self._saved_step = step

    def _leave(self, trainer: Trainer, number: int) -> NoReturn:
        path = RunFolder(trainer.default_root_dir).last_checkpoint
        STOP.leave(number, f"stopped at step {trainer.global_step}; state is in {path}, continue with --resume")


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """This process's generators: torch on the CPU and on `device`, NumPy, Python. Inverse: `set_rng_state`."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    _, words, python_gauss = random.getstate()
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        **states,
        "numpy": torch.tensor([*numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"]]),
        "python": torch.tensor(words),
        # NaN where no second normal number is kept.
        "gauss": torch.tensor(
            [numpy["gauss"], float("nan") if python_gauss is None else python_gauss], dtype=torch.float64
        ),
    }


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put this process's generators into a state that `rng_state` has returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    *keys, position, has_gauss = state["numpy"].tolist()
    gauss, python_gauss = state["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    random.setstate((3, tuple(state["python"].tolist()), None if python_gauss != python_gauss else python_gauss))


def gather_rng_states(trainer: Trainer) -> list[dict[str, Any]]:
    """The states of all ranks, in order; every rank must call this."""
    state = rng_state(trainer.strategy.root_device)
    if trainer.world_size == 1:
        return [state]
    device = trainer.strategy.root_device
    gathered = {name: trainer.strategy.all_gather(tensor.to(device)).cpu() for name, tensor in state.items()}
    return [{name: tensors[rank].clone() for name, tensors in gathered.items()} for rank in range(trainer.world_size)]
