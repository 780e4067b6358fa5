"""Compressed token distillation (CTD, arXiv 2605.17260) as a Lightning module: wiring, no maths of its own.

Shapes: B clips, T frames, H x W pixels, (h,w) compressed grid, C teacher channels.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from liteframe.distill.announce import opening_line
from liteframe.distill.cache.dataset import check_cache
from liteframe.distill.clips import ClipBatch
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.losses import LossName, batch_loss, clip_losses, drop_large_losses, token_losses
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.distill.statistics import FeatureStatistics
from liteframe.distill.student_setup import build_student, fit_to_teacher, unfold_head
from liteframe.distill.targets import (
    TargetBuilder,
    TargetSettings,
    measure_statistics,
    save_statistics,
)
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.load import TeacherSettings
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher
from liteframe.reduce.wap import real_slots
from liteframe.training.guard import GuardSettings
from liteframe.training.guarded_module import GuardedModule
from liteframe.training.report import StepMeans, tell
from liteframe.training.schedule import OptimizerSettings, configure_adamw, total_steps
from liteframe.training.sharded import full_state_dict, shard
from liteframe.training.signals import leave_if_told


class CTDModule(GuardedModule):
    """Trains a LiteFrame student to emit its teacher's weighted average pooled features.

    Args:
        teacher: whom to learn from.
        student: shape of the student; teacher_dim and preprocessing are taken from the teacher.
        target: how targets are pooled, clipped and standardized.
        loss: between student and target.
        init: weights to start from: cut from the teacher, or random.
        init_from: folder of a saved encoder to start from instead.
        optimizer: AdamW and its schedule.
        guard: which steps are skipped, and when the run stops.
        compile: run the blocks of teacher and student through torch.compile; the first steps then take a minute.
        activation_checkpointing: compute the student's activations twice instead of keeping them.
    """

    def __init__(
        self,
        teacher: TeacherSettings,
        student: LiteFrameConfig,
        target: TargetSettings = TargetSettings(),  # noqa: B008 - shown as the default in --help, never changed
        loss: LossName = "mse",
        init: Literal["weight_selection", "random"] = "weight_selection",
        init_from: str | None = None,
        optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008 - as above
        guard: GuardSettings = GuardSettings(),  # noqa: B008 - as above
        compile: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__(guard)
        self.compiled, self.activation_checkpointing = compile, activation_checkpointing
        self.teacher_settings, self.student_config, self.target_settings = teacher, student, target
        self.loss_name, self.init, self.init_from, self.optimizer_settings = loss, init, init_from, optimizer
        self.micro_batch_size = 1
        self.step_means = StepMeans("loss", "cosine", "clipped_fraction")

    def configure_model(self) -> None:
        """Load the teacher, build the student and tell the data how frames must look."""
        if hasattr(self, "student"):
            return
        data = self.data()
        # A Teacher hides its weights from state_dict, optimizer and checkpoints.
        self.teacher = self.teacher_settings.load()
        config, data.frame_format = fit_to_teacher(self.student_config, self.teacher, data.size)
        if data.target_cache is not None:
            check_cache(data.target_cache, {**self.target_identity(config), **data.clip_identity()})
        self.student = build_student(config, self.teacher, self.init, self.init_from)
        if data.target_cache is not None:
            self.teacher.drop_tower()
        if self.activation_checkpointing:
            self.student.checkpoint_activations()
        if data.target_cache is None:
            # The student's first weights are cut from the teacher's before these are rounded.
            prepare_teacher(self.teacher, self.trainer.strategy.root_device, str(self.trainer.precision))
        if self.compiled:
            for model in (self.student, *(() if data.target_cache else (self.teacher.tower,))):
                compile_blocks(model)
        shard(self.trainer, self.student, self.student.blocks)
        self.pooled_teacher = PooledTeacher(self.teacher, config.compression, self.target_settings.scope)
        self.target = TargetBuilder(self.teacher.dim, self.target_settings)
        self.metrics = HeldOutMetrics(self.teacher.dim, projected=self.teacher.projector is not None)

    def target_identity(self, config: LiteFrameConfig) -> dict[str, Any]:
        """What the target of a given clip depends on, under the names of CacheSettings."""
        settings = self.target_settings
        return {
            **{"teacher_sha256": self.teacher.identity, "dim": self.teacher.dim},
            **{"compression": config.compression, "scope": settings.scope},
            **{"statistics_clips": settings.statistics_clips},
        }

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine."""
        return configure_adamw(self.student, self.optimizer_settings, total_steps(self.trainer))

    def on_fit_start(self) -> None:
        """Measure the target statistics unless a checkpoint brought them, and move the head to standardized space."""
        data = self.data()
        self.micro_batch_size = data.micro_batch_size
        if not self.target.ready:
            self._fit_target(data)
            unfold_head(self.student.head, self.target, raw=self.init == "weight_selection" or bool(self.init_from))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember whom the student learns from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher_identity"] = self.teacher.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue with another teacher.

        Raises:
            ValueError: its weights are not those that the run started with.
        """
        if checkpoint["teacher_identity"] != self.teacher.identity:
            raise ValueError(
                f"--resume: {self.teacher.name} does not have the weights that the run started with; "
                "use the same teacher, or start another run with --init_from"
            )
        super().on_load_checkpoint(checkpoint)

    def on_train_start(self) -> None:
        """Say what is about to happen."""
        tell(opening_line(self.student, self.teacher, self.data(), total_steps(self.trainer)))

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """A teacher in training mode would give other targets without any error."""
        if any(module.training for part in self.teacher.parts for module in part.modules()):
            raise RuntimeError(f"the teacher {self.teacher.name} is in training mode; something called .train() on it")

    def step_loss(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch: each clip weighs 1 / micro_batch_size, whatever became of the others."""
        if not batch.paths:
            # Nothing to learn from; other ranks may wait for these gradients, though.
            return self.encode(self.blank_clip()).sum() * 0.0, {}
        pooled, slots, _ = self.pooled_target(batch)
        target = self.target(pooled, slots)
        with self.timed("student"):
            prediction = self.encode(batch.video)
        losses = token_losses(prediction, target.values, self.loss_name)
        weight, clipped = target.weight, target.clipped
        if self.target_settings.clipping == "loss_clip":
            weight = drop_large_losses(losses, weight, self.target_settings.sigmas)
            clipped = 1 - weight.sum() / target.weight.sum().clamp_min(1)
        per_clip = clip_losses(losses, weight)
        with self.timed("metrics"), torch.no_grad():
            similar = torch.cosine_similarity(self.target.standardizer.inverse(prediction), pooled, dim=-1)
            cosine = clip_losses(similar, target.weight).mean()
            self.step_means.add(
                len(batch.paths), {"loss": per_clip.mean(), "cosine": cosine, "clipped_fraction": clipped}
            )
        watched = {"frames": batch.video, "target": pooled, "prediction": prediction}
        return batch_loss(per_clip, self.micro_batch_size), watched

    def clips(self, batch: ClipBatch) -> list[dict[str, Any]]:
        """See GuardedModule."""
        return [{"key": list(key), "path": path} for key, path in zip(batch.keys, batch.paths, strict=True)]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the means of the global batch."""
        for name, value in self.step_means.reduce(self.trainer).items():
            self.log(f"train/{name}", value)

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Compare with the teacher's unclipped features, in its raw space."""
        if not batch.paths:
            self.predict_raw(self.blank_clip())  # other ranks may wait for this one's shards
            nothing = torch.empty(0, 1, 1, 1, self.teacher.dim, device=self.device)
            self.metrics.update(nothing, nothing, torch.empty(0, 1, dtype=torch.bool, device=self.device))
            return
        pooled, slots, _ = self.pooled_target(batch)
        self.metrics.update(self.predict_raw(batch.video), pooled, slots, self.teacher.projector)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out figures."""
        for name, value in self.metrics.compute().items():
            self.log(f"val/{name}", value)
        self.metrics.reset()

    @torch.no_grad()
    def pooled_target(self, batch: ClipBatch, *, logits: bool = False) -> Pooled:
        """Raw WAP features out of the cache or the teacher; a cache has no logits."""
        if batch.targets is not None:
            return Pooled(batch.targets.float(), real_slots(batch.frame_mask, self.pooled_teacher.window[0]), None)
        with self.timed("teacher"), whole_batches(len(batch.paths), self.micro_batch_size):
            features = self.teacher(batch.video)
        with self.timed("pooling"):
            pooled = self.pooled_teacher.pool(features, batch.frame_mask)
            return pooled._replace(logits=self.pooled_teacher.logits(features)) if logits else pooled

    def encode(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> student features [B,T/t,h,w,C] in the space of the loss."""
        with whole_batches(video.shape[0], self.micro_batch_size):
            return self.student(video)

    def predict_raw(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> student features [B,T/t,h,w,C] in the teacher's raw space."""
        return self.target.standardizer.inverse(self.encode(video))

    def blank_clip(self) -> Tensor:
        """[1,T,3,H,W] of zeros, for a rank that has to run the student without a clip of its own."""
        data = self.data()
        assert data.frame_format is not None
        return torch.zeros(1, data.clip_frames, 3, *data.frame_format.size, device=self.device)

    def folded_encoder(self) -> LiteFrameEncoder:
        """A copy of the student, on the CPU, whose head emits raw teacher features; all ranks must ask for it."""
        with torch.device("meta"):
            encoder = LiteFrameEncoder(self.student.config).eval()
        encoder.load_state_dict(full_state_dict(self.student), assign=True)
        standardizer = copy.deepcopy(self.target.standardizer).cpu()
        standardizer.fold(encoder.head)
        return encoder

    def _fit_target(self, data: ClipDataModule) -> None:
        """Take the target statistics from the cache or measure them, and keep them with the run."""
        cache = data.target_cache
        statistics = self._measured_statistics(data) if cache is None else cache.statistics
        self.target.fit(statistics)
        if self.trainer.is_global_zero:
            save_statistics(self.target, statistics.count, Path(self.trainer.default_root_dir))

    def _measured_statistics(self, data: ClipDataModule) -> FeatureStatistics:
        tell(f"measuring target statistics on {self.target_settings.statistics_clips} clips")
        full = self.target_settings.standardize == "phi_s"
        return measure_statistics(self._pooled_tokens(data), self.teacher.dim, self.device, full=full)

    def _pooled_tokens(self, data: ClipDataModule) -> Iterator[Tensor]:
        """Raw pooled features [tokens,C] of each batch of the clips that statistics are measured on."""
        for batch in data.statistics_batches(self.target_settings.statistics_clips, self.device):
            leave_if_told(self.trainer, "stopped while measuring target statistics; --resume auto starts the run again")
            if not batch.paths:
                yield torch.empty(0, self.teacher.dim, device=self.device)
                continue
            with self.trainer.precision_plugin.forward_context():
                pooled, slots, _ = self.pooled_target(batch)
            yield pooled[slots].flatten(0, -2)

    def timed(self, part: str) -> AbstractContextManager[Any]:
        """A range that --profile measures."""
        return self.trainer.profiler.profile(part)  # type: ignore[attr-defined]

    def data(self) -> ClipDataModule:
        """The trainer's data module."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            raise ValueError("CTDModule needs a ClipDataModule: pass it to the trainer as datamodule=")
        return data
