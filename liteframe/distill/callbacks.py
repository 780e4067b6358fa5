"""What a CTD run leaves behind: pictures while it runs, the encoder, the report."""

from dataclasses import asdict
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from liteframe.distill.clips import ClipBatch
from liteframe.distill.module import CTDModule
from liteframe.distill.panel import clip_panel
from liteframe.files import write_json
from liteframe.training.ema import weight_ema
from liteframe.training.report import ProgressLine, environment
from liteframe.training.run_folder import RunFolder
from liteframe.training.sharded import is_sharded


class FeaturePanel(Callback):
    """Shows one clip in TensorBoard: frames, teacher's saliency, target and student tokens.

    The clip is the first held-out one, or the first training clip where nothing is held out.

    Args:
        every_n_steps: optimizer steps between two pictures; the first comes at step 1.
    """

    def __init__(self, every_n_steps: int = 300):
        if every_n_steps < 1:
            raise ValueError(f"panel.every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._clip: ClipBatch | None = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: ClipBatch, batch_idx: int, *_: int
    ) -> None:
        """Keep the first held-out clip."""
        if batch_idx == 0 and batch.paths:
            self._keep(batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: ClipBatch, batch_idx: int
    ) -> None:
        """Draw if it is time to."""
        if self._clip is None and batch.paths:
            self._keep(batch)
        step = trainer.global_step
        due = step == 1 or step % self.every_n_steps == 0
        if due and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final state."""
        self.draw(trainer, pl_module)

    @torch.no_grad()
    def draw(self, trainer: Trainer, module: LightningModule) -> None:
        """Write the picture of the first rank's clip to the run's TensorBoard events; every rank must call it."""
        assert isinstance(module, CTDModule)
        if self._clip is None or not trainer.is_global_zero or not isinstance(trainer.logger, TensorBoardLogger):
            if is_sharded(module.student):
                module.predict_raw(module.blank_clip())  # the first rank needs this one's shards
            return
        clip = move_data_to_device(self._clip, module.device)
        # One clip has a shape of its own, not worth compiling for.
        with torch.compiler.set_stance("eager_on_recompile"), trainer.precision_plugin.forward_context():
            # A cache holds no saliency, and then there is no teacher to ask.
            target, _, saliency = module.pooled_target(clip, logits=True)
            student = module.predict_raw(clip.video)
        weights = None if saliency is None else saliency[0]
        if not (target.isfinite().all() and student.isfinite().all()):
            return  # there are no main directions to draw, and a picture is no reason to stop
        picture = clip_panel(self._pixels(module, clip.video[0]), weights, target[0], student[0])
        name = f"frames, {'saliency, ' if weights is not None else ''}target, student"
        trainer.logger.experiment.add_image(name, picture.cpu(), trainer.global_step)

    def _keep(self, batch: ClipBatch) -> None:
        targets = None if batch.targets is None else batch.targets[:1].clone()
        self._clip = ClipBatch(
            batch.video[:1].clone(), batch.frame_mask[:1].clone(), batch.paths[:1], [], batch.keys[:1], targets
        )

    @staticmethod
    def _pixels(module: CTDModule, video: Tensor) -> Tensor:
        mean, std = (torch.tensor(x, device=video.device).view(3, 1, 1) for x in (
            module.student.config.image_mean, module.student.config.image_std
        ))  # fmt: skip
        return (video * std + mean).clamp(0, 1)


class EncoderSaver(Callback):
    """Saves the encoder after each validation and at the end: raw features, averaged weights if there are any."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what has just been measured."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final encoder."""
        self._save(trainer, pl_module)

    @staticmethod
    def _save(trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, CTDModule)
        with weight_ema(trainer).averaged(module):
            if trainer.is_global_zero or is_sharded(module.student):
                encoder = module.folded_encoder()
        if trainer.is_global_zero:
            encoder.save_pretrained(RunFolder(trainer.default_root_dir).encoder)


def count_clips(batch: ClipBatch) -> int:
    """Clips that could be read."""
    return len(batch.paths)


def progress_line() -> ProgressLine:
    """CTD's progress line."""
    names = {"loss": "loss", "cosine": "cosine", "grad": "gradient_norm", "clipped": "clipped_fraction"}
    return ProgressLine({short: f"train/{name}" for short, name in names.items()}, count=count_clips, unit="clips")


def write_report(trainer: Trainer, module: CTDModule, figures: dict[str, float], seed: int) -> None:
    """Write report.json: figures, time, data, teacher, student, versions, machine, date and command."""
    data, line = module.data(), trainer.progress_bar_callback
    assert data.tally is not None
    assert isinstance(line, ProgressLine)
    teacher, student = module.teacher, module.student
    write_json(
        RunFolder(trainer.default_root_dir).report,
        {
            "kind": "ctd",
            "steps": trainer.global_step,
            "seed": seed,
            "figures": figures,
            "time": line.summary(),
            "data": {
                "videos": data.videos,
                "train_videos": len(data.train_entries),
                "val_videos": len(data.val_entries),
                "batch_size": data.batch_size,
                "cache": None if data.target_cache is None else asdict(data.target_cache.settings),
                **data.tally.summary(),
            },
            "teacher": {"name": teacher.name, "sha256": teacher.identity, "license": teacher.license},
            "student": {
                "parameters": sum(parameter.numel() for parameter in student.parameters()),
                **student.config.to_dict(),
            },
            "precision": str(trainer.precision),
            **environment(module.device),
        },
    )
