"""What a run that is continued does with each of its settings, and the record of what was changed (docs/resume.md)."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from liteframe.files import write_atomically
from liteframe.training.checkpoint_folder import AtomicCheckpointIO
from liteframe.training.report import tell
from liteframe.training.run_folder import ANOTHER_RUN, RunFolder


class OnResume(StrEnum):
    """What `--resume` does with another value of a setting than the run has had."""

    FIXED = "refused: the run's results rest on it"
    CONTENTS = "another name is taken and recorded; what it names must be the same"
    CHANGES = "taken from the next step on, and recorded"
    SCHEDULE = "taken, and recorded: the learning rate goes on from where it is"
    COMMAND = "of the command, not of the run"


SETTINGS: dict[str, OnResume] = {
    **dict.fromkeys(
        (
            "seed_everything",
            # The student, and how it starts.
            "model.student.dim", "model.student.depth", "model.student.heads", "model.student.mlp_dim",
            "model.student.patch_size", "model.student.image_size", "model.student.teacher_dim",
            "model.student.downsample", "model.student.modes", "model.student.temporal_kernel",
            "model.student.temporal_mixer", "model.student.layer_scale_init", "model.student.layer_norm_eps",
            "model.student.clip_frames", "model.student.image_mean", "model.student.image_std", "model.student.resize",
            "model.student.merge_size", "model.student.deepstack",
            "model.init",
            # What it learns; target statistics are measured once.
            "model.objective", "model.teacher.pretrained", "model.teacher.options", "model.teacher.deepstack",
            "model.target.scope",
            "model.target.sigmas", "model.target.standardize", "model.target.statistics_clips", "ema.decay",
            # What LMA trains.
            "model.lora.rank", "model.lora.alpha", "model.train_projector", "model.train_encoder", "model.quantize",
            "model.summary", "model.learned_clips", "model.qformer",
            # What TPO takes for a gain.
            "model.beta", "model.alpha",
            "model.optimizer.kind", "model.optimizer.split_qkv", "model.optimizer.warmup_steps",
            # Which samples come when, and as what.
            "data.batch_size", "data.val_fraction", "data.min_fps", "data.size", "data.augment.crop_area",
            "data.augment.crop_ratio", "data.augment.flip", "data.frames", "data.fps", "data.group_by_length",
            "trainer.limit_train_batches", "trainer.overfit_batches", "trainer.use_distributed_sampler",
            "trainer.fast_dev_run", "trainer.barebones",
            # The command has other means for these (OWNED in liteframe/training/command.py).
            "trainer.default_root_dir", "trainer.logger", "trainer.accumulate_grad_batches",
            "trainer.gradient_clip_algorithm",
        ),
        OnResume.FIXED,
    ),
    **dict.fromkeys(
        # Each is in `contents` of the module or the data module.
        (
            "model.teacher.name", "init_from", "model.vlm", "model.encoder", "model.init_adapter", "data.videos",
            "data.cache", "data.conversations", "data.pairs", "data.tokens",
        ),
        OnResume.CONTENTS,
    ),
    **dict.fromkeys(
        (
            # What is learned from a batch, and how far a step goes.
            "model.loss", "model.target.clipping", "model.distillation.weight", "model.distillation.frames",
            "model.lora.dropout", "model.optimizer.lr",
            "model.optimizer.muon_lr", "model.optimizer.weight_decay", "model.optimizer.betas",
            "model.encoder_lr_ratio", "trainer.gradient_clip_val",
            "model.guard.factor", "model.guard.window", "model.guard.warmup", "model.guard.max_skipped",
            "model.guard.within", "data.max_failure_rate", "data.deadline",
            # How it is computed.
            "model.compile", "model.activation_checkpointing", "model.gradient_checkpointing",
            "model.reference_log_probs", "data.micro_batch_size", "data.context_parallel", "data.workers",
            "data.cache_features",
            "trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.precision",
            "trainer.benchmark", "trainer.deterministic", "trainer.detect_anomaly", "trainer.inference_mode",
            "trainer.sync_batchnorm", "trainer.plugins", "trainer.reload_dataloaders_every_n_epochs",
            # What is measured, shown and saved, and when.
            "data.val_videos", "checkpoint.every_n_steps", "panel.every_n_steps", "trainer.callbacks",
            "trainer.check_val_every_n_epoch", "trainer.enable_autolog_hparams", "trainer.enable_checkpointing",
            "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.limit_predict_batches",
            "trainer.limit_test_batches", "trainer.limit_val_batches", "trainer.log_every_n_steps", "trainer.max_time",
            "trainer.min_epochs", "trainer.min_steps", "trainer.model_registry", "trainer.num_sanity_val_steps",
            "trainer.profiler", "trainer.val_check_interval",
        ),
        OnResume.CHANGES,
    ),
    **dict.fromkeys(
        ("trainer.max_steps", "trainer.max_epochs", "model.optimizer.final_lr_ratio"), OnResume.SCHEDULE
    ),
    **dict.fromkeys(("run", "resume", "profile"), OnResume.COMMAND),
}  # fmt: skip


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as a configuration file nests them, one by one: ("model.optimizer.lr", 5e-4)."""
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value and name not in SETTINGS:
            yield from flat(value, f"{name}.")
        else:
            yield name, value


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings of a run that differ, with both values; a setting that only one of them knows has no other value."""
    return {
        name: (before[name], value)
        for name, value in now.items()
        if name in before and value != before[name] and SETTINGS.get(name) is not OnResume.COMMAND
    }


def refuse_fixed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what a run has been with what is asked of it.

    Args:
        before: settings by name, of its checkpoint.
        now: the same, as asked.

    Raises:
        ValueError: they differ in what is fixed; names each setting and both values.
    """
    refused = [
        f"{name} was {old!r} and is {new!r}"
        for name, (old, new) in changes(before, now).items()
        # What the table does not know yet is not changed on a guess.
        if SETTINGS.get(name, OnResume.FIXED) is OnResume.FIXED
    ]
    if refused:
        raise ValueError(
            f"--resume goes on with the same run, but {'; '.join(refused)}. Leave such a setting out of the command "
            f"line and of --config, which keeps the run's own value, or {ANOTHER_RUN}"
        )


def refuse_other_contents(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> None:
    """Compare what the settings of a run name, by digests.

    Raises:
        ValueError: something else than in the run's checkpoint; names each setting and both digests.
    """
    changed = [f"{name} was {before.get(name)} and is {now[name]}" for name in now if now[name] != before.get(name)]
    if changed:
        raise ValueError(
            f"--resume goes on with what the run started with, but {'; '.join(changed)}. Bring it back, or "
            f"{ANOTHER_RUN}"
        )


def continued_run(words: Sequence[str]) -> tuple[str, Any]:
    """--run and --resume of a command line that need have no more, since the run knows the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run", default="")
    parser.add_argument("--resume", nargs="?", const=True, default=False)
    known, _ = parser.parse_known_args(words)
    return known.run, known.resume


def own_settings(run: str, resume: Any) -> Path | None:
    """The configuration of the run that a command line continues, if there is a checkpoint to continue from."""
    folder = RunFolder(run)
    saved = folder.checkpoints.manifest.exists() or folder.last_checkpoint.is_file()
    return folder.config if run and resume and saved and folder.config.is_file() else None


def with_settings(words: Sequence[str], config: Path | None) -> list[str]:
    """A command line of `fit` with a configuration before all that it says itself."""
    if config is None or "fit" not in words:
        return list(words)
    place = words.index("fit") + 1
    return [*words[:place], f"--config={config}", *words[place:]]


def saved_settings(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made with, by name; its tensors are not read.

    Raises:
        ValueError: it holds none.
    """
    settings = AtomicCheckpointIO().load_checkpoint(checkpoint, mmap=True).get("settings")
    if settings is None:
        raise ValueError(
            f"--resume: {checkpoint} does not say what settings it was made with: it is of an earlier LiteFrame. "
            f"Finish the run with that, or {ANOTHER_RUN}"
        )
    return settings


class RunSettings(SaveConfigCallback):
    """Keeps config.yaml what the run does, and RUN/config_changes.jsonl what it was before.

    A new run's is written before anything is loaded; a resumed run's once all of it has been accepted and applied.
    Each checkpoint holds the settings that it was made with.

    Args:
        parser: of the settings.
        config: the settings.
        resumed: whether the run goes on from a checkpoint.
    """

    def __init__(self, parser: LightningArgumentParser, config: Any, *, resumed: bool):
        super().__init__(parser, config)
        self.resumed = resumed
        self.settings = plain_settings(parser, config)
        self._before: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the settings of a new run."""
        if stage == "fit" and not self.resumed:
            self._write(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember what the run has been."""
        self._before = checkpoint["settings"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record and tell, before its first step, what a resumed run does otherwise than before."""
        if self._before is None:
            return
        step, changed = trainer.global_step, changes(self._before, self._settings(trainer))
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).record_changes(step, changed)
        self._write(trainer)
        for name, (old, new) in changed.items():
            tell(f"--resume: from step {step} on, {name} is {new!r}; it was {old!r}")
        self._before = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say what the checkpoint was made with."""
        checkpoint["settings"] = self._settings(trainer)

    def _settings(self, trainer: Trainer) -> dict[str, Any]:
        # Left open, the precision is what the machine has.
        return self.settings | {"trainer.precision": str(trainer.precision)}

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_atomically(RunFolder(trainer.default_root_dir).config, text.encode())


def plain_settings(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """A parsed configuration as numbers, words and lists, by the names in SETTINGS."""
    return dict(flat(yaml.safe_load(parser.dump(config, skip_none=False))))
