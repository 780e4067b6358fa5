"""`--profile`: a command's run, cut down to a rehearsal, and what is printed and written after it."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar

from liteframe.files import write_json
from liteframe.training.checkpoint import LastCheckpoint
from liteframe.training.profile_report import Circumstances, as_record, sentence, table
from liteframe.training.profile_steps import Measurement, Rehearsal
from liteframe.training.report import environment


def rehearse(config: Any) -> Rehearsal:
    """Make a parsed configuration that of a short run beside the real one: nothing validated, saved or resumed.

    Raises:
        ValueError: a negative number of steps, or a run that is to be resumed.
    """
    if config.profile < 0 or config.resume:
        raise ValueError("--profile takes a number of steps, and measures a run from its start: leave out --resume")
    planned = config.trainer.max_steps, config.trainer.max_epochs
    rehearsal = Rehearsal(config.profile, trace=Path(config.run) / "profile", planned=planned)
    config.run = str(rehearsal.trace)
    config.trainer.max_steps, config.trainer.max_epochs = rehearsal.all_steps, -1
    config.trainer.limit_val_batches = 0
    return rehearsal


def lasting(configured: list[Callback], own: list[Callback]) -> list[Callback]:
    """Callbacks of a run that take part in its rehearsal too: those that are there for the steps, not for the files."""
    steps = [callback for callback in configured if not isinstance(callback, LastCheckpoint)]
    return [*steps, *(callback for callback in own if isinstance(callback, ProgressBar))]


def write_profile(trainer: Trainer, rehearsal: Rehearsal, given: Circumstances) -> Measurement:
    """Print the table and the bottleneck, and write profile.json beside the folder of the trace.

    Raises:
        ValueError: the run ended before its steps were measured.
    """
    found = rehearsal.measurement
    if found is None:
        raise ValueError(f"the run ended at step {trainer.global_step}, before its steps were measured")
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    path = rehearsal.trace.parent / "profile.json"
    write_json(
        path,
        {
            **as_record(found, given),
            "batch_size": data.batch_size,
            "micro_batch_size": data.micro_batch_size,
            "accumulated": trainer.accumulate_grad_batches,
            "devices": trainer.world_size,
            "workers": given.workers,
            "compiled": given.compiled,
            "cached": given.cached,
            "precision": str(trainer.precision),
            **environment(trainer.strategy.root_device),
        },
    )
    print(f"{table(found)}\n{sentence(found, given)}\nwrote {path}; trace in {found.trace}")
    return found
