"""What a CTD run says and leaves behind: the opening and the progress line, the encoder, the report."""

from dataclasses import asdict
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from typing_extensions import override

from liteframe.distill.buckets import describe_sizes
from liteframe.distill.module import CTDModule
from liteframe.files import write_json
from liteframe.models.teacher.licenses import warning
from liteframe.training.ema import weight_ema
from liteframe.training.report import ProgressLine, environment, tell
from liteframe.training.run_folder import RunFolder
from liteframe.training.schedule import total_steps
from liteframe.training.sharded import is_sharded


class EncoderSaver(Callback):
    """Saves the encoder after each validation and at the end: raw features, averaged weights if there are any."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save what has just been measured."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._save(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._save(trainer, pl_module)

    @staticmethod
    def _save(trainer: Trainer, module: CTDModule) -> None:
        with weight_ema(trainer).averaged(module):
            if trainer.is_global_zero or is_sharded(module.student):
                encoder = module.folded_encoder()
        if trainer.is_global_zero:
            encoder.save_pretrained(RunFolder(trainer.default_root_dir).encoder)


class CTDProgress(ProgressLine):
    """CTD's progress line, and before it who learns from whom, from how many videos, for how long."""

    def __init__(self) -> None:
        names = {"loss": "loss", "cosine": "cosine", "grad": "gradient_norm", "clipped": "clipped_fraction"}
        logged = {short: f"train/{name}" for short, name in names.items()}
        super().__init__(logged, count=lambda batch: len(batch.paths), unit="clips")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        data, teacher = pl_module.data(), pl_module.teacher
        if (cache := data.target_cache) is None:
            source = f"{_millions(teacher.tower)}, frozen"
        else:
            source = f"{cache.settings.views} views of each video in {cache.folder}, {cache.settings.codec}"
        tell(
            f"student of {_millions(pl_module.student)} parameters learns from {teacher.name} ({source}): "
            f"{total_steps(trainer)} steps of {data.batch_size} clips x {data.clip_frames} frames, "
            f"{len(data.train_entries)} videos, {len(data.val_entries)} held out"
        )
        for origin in filter(None, (teacher, pl_module.start)):
            if terms := warning(origin.license):
                tell(f"license of {origin.name}: {origin.license}: {terms}")
        for line in [] if data.sizes is None else describe_sizes(data.sizes[0], data.batch_size):
            tell(line)


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f}M"


def write_report(trainer: Trainer, module: CTDModule, figures: dict[str, float], seed: int) -> None:
    """Write report.json: figures, time, data, teacher, student, versions, machine, date and command."""
    time = next(callback for callback in trainer.callbacks if isinstance(callback, ProgressLine)).summary()  # type: ignore[attr-defined]
    data, teacher, student = module.data(), module.teacher, module.student
    write_json(
        RunFolder(trainer.default_root_dir).report,
        {
            "kind": "ctd",
            "steps": trainer.global_step,
            "seed": seed,
            "figures": figures,
            "time": time,
            "data": {
                "videos": data.videos,
                "train_videos": len(data.train_entries),
                "val_videos": len(data.val_entries),
                "batch_size": data.batch_size,
                "cache": None if data.target_cache is None else asdict(data.target_cache.settings),
                **data.tally.summary(),
            },
            "teacher": {"name": teacher.name, "sha256": teacher.identity, "license": teacher.license},
            "init_from": module.start and module.start._asdict(),
            "student": {
                "parameters": sum(parameter.numel() for parameter in student.parameters()),
                **student.config.to_dict(),
            },
            "precision": str(trainer.precision),
            "config_changes": RunFolder(trainer.default_root_dir).changes(),
            **environment(module.device),
        },
    )
