"""Compressed token distillation (CTD, arXiv 2605.17260) as a Lightning module: wiring, no maths of its own.

Shapes: B clips, T frames, H x W pixels, (h,w) compressed grid, C teacher channels.
"""

import copy
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.data.preprocess import FrameFormat
from liteframe.distill.clips import ClipBatch
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.losses import LossName, batch_loss
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.objectives import make_objective
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.distill.statistics import ChannelStatistics, RunningStatistics
from liteframe.distill.student_init import build_student, check_grids, head_is_raw, unfold_head, with_preprocessing
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.load import TeacherSettings
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher, coarser, factor_between
from liteframe.reduce.wap import real_slots
from liteframe.training.guard import GuardSettings
from liteframe.training.guarded_module import GuardedModule
from liteframe.training.report import StepMeans, tell
from liteframe.training.schedule import OptimizerSettings, configure_optimizer, total_steps
from liteframe.training.sharded import full_state_dict, is_sharded, shard
from liteframe.training.signals import leave_if_told


class CTDModule(GuardedModule):
    """Trains a LiteFrame student to emit its teacher's weighted average pooled features, or by another objective.

    Args:
        teacher: whom to learn from.
        student: shape of the student; teacher_dim and preprocessing are taken from the teacher.
        target: how targets are pooled, clipped and standardized.
        objective: "ctd"; or "rtd", which reconstructs the teacher's dense features by a transformer that is
            thrown away, as "rtd_linear" and "rtd_repeat" do by less.
        loss: between student and target.
        init: weights to start from: cut from the teacher, or random.
        init_from: folder of a saved encoder to start from instead, or `timm/<name>`, a ViT at least as large as the
            student.
        optimizer: AdamW or Muon, and its schedule.
        guard: which steps are skipped, and when the run stops.
        compile: run the blocks of teacher and student through torch.compile; the first steps then take a minute.
        activation_checkpointing: compute the student's activations twice instead of keeping them.

    Raises:
        ValueError: the teacher cannot be loaded, or there is no such objective.
    """

    def __init__(
        self,
        teacher: TeacherSettings,
        student: LiteFrameConfig,
        target: TargetSettings = TargetSettings(),  # noqa: B008 - shown as the default in --help, never changed
        objective: str = "ctd",
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
        self.teacher_settings, self.target_settings = teacher, target
        self.init, self.init_from, self.optimizer_settings = init, init_from, optimizer
        # A Teacher hides its weights from state_dict, optimizer and checkpoints.
        self.teacher = teacher.load()
        self.student_config = with_preprocessing(student, self.teacher)
        self.objective = make_objective(objective, self.teacher.dim, target, loss, self.student_config)
        self.pooled_teacher = PooledTeacher(self.teacher, self.objective.pooling, target.scope)
        for name, part in self.objective.modules().items():
            self.add_module(name, part)
        own, *others = self.objective.figure_names  # a cosine for each compression
        self.metrics = self._held_out()
        self.metrics_of_modes = nn.ModuleDict({name.removeprefix(own): self._held_out() for name in others})
        self.step_means = StepMeans("loss", *self.objective.figure_names, "clipped_fraction")

    def _held_out(self) -> HeldOutMetrics:
        projected = self.teacher.projector is not None
        return HeldOutMetrics(self.teacher.dim, projected=projected, parts=self.objective.parts)

    @property
    def frame_format(self) -> FrameFormat:
        """How the teacher wants frames, and the student after it."""
        config = self.student_config
        size, multiple = (config.image_size, config.image_size), config.pixel_multiple
        return FrameFormat(size, config.image_mean, config.image_std, config.resize, multiple)

    @property
    def target_identity(self) -> dict[str, Any]:
        """What the target of a given clip depends on, under the names of CacheSettings."""
        return {
            "teacher_sha256": self.teacher.identity,
            "saliency": self.teacher.saliency,
            "dim": self.teacher.dim,
            "compression": self.objective.pooling,
            "log_weights": self.objective.needs_log_weights,
            "statistics_window": self.objective.statistics_window,
            "scope": self.target_settings.scope,
            "statistics_clips": self.target_settings.statistics_clips,
        }

    @override
    def configure_model(self) -> None:
        """Build the student, give the teacher the run's precision, compile and shard; later calls change nothing."""
        if hasattr(self, "student"):
            return
        data = self.data()
        check_grids(self.student_config, self.teacher, data.frame_format.size)
        if data.target_cache is not None:
            data.target_cache.refuse_other("data.cache", {**self.target_identity, **data.clip_identity()})
        self.student, self.start = build_student(self.student_config, self.teacher, self.init, self.init_from)
        self.contents = {"model.teacher.name": self.teacher.identity, "init_from": self.start and self.start.sha256}
        if data.target_cache is not None:
            self.teacher.drop_tower()
        if self.activation_checkpointing:
            self.student.checkpoint_activations()
        if data.target_cache is None:
            # The student's first weights are cut from the teacher's before these are rounded.
            prepare_teacher(self.teacher, self.trainer.strategy.root_device, str(self.trainer.precision))
        if self.compiled:
            for model in (self.student, *(() if data.target_cache else (self.teacher.tower,))):
                compile_blocks(model, sizes=data.size_count)
        shard(self.trainer, self.student, self.student.blocks)
        if is_sharded(self.student) and list(self.trained.parameters()) != list(self.student.parameters()):
            raise ValueError("--trainer.strategy fsdp2 divides a student and no decoder of rtd: use ddp")
        if is_sharded(self.student) and self.student_config.modes:
            raise ValueError("--trainer.strategy fsdp2 divides a student of one compression, not of modes: use ddp")

    @property
    def trained(self) -> nn.Module:
        """The student, and what the objective trains beside it."""
        return nn.ModuleList([self.student, *self.objective.modules().values()])

    @override
    def configure_optimizers(self) -> Any:
        return configure_optimizer(self.trained, self.optimizer_settings, total_steps(self.trainer))

    @override
    def on_fit_start(self) -> None:
        """Take the statistics of targets from the cache or measure them, and move the head to standardized space."""
        if self.objective.ready:  # a checkpoint brought them
            return
        cache = self.data().target_cache
        statistics = self.measure_statistics() if cache is None else cache.statistics
        self.objective.fit(statistics)
        normalizer = self.objective.normalizer
        if self.trainer.is_global_zero:
            normalizer.save(statistics.count, Path(self.trainer.default_root_dir))
        if head_is_raw(self.init, self.init_from):
            unfold_head(self.student.head, normalizer.standardizer)

    @override
    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """A teacher in training mode would give other targets without any error."""
        if any(module.training for part in self.teacher.parts for module in part.modules()):
            raise RuntimeError(f"the teacher {self.teacher.name} is in training mode; something called .train() on it")

    @override
    def step_loss(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch: each clip weighs 1 / micro_batch_size, whatever became of the others."""
        if not batch.paths:
            # Nothing to learn from; other ranks may wait for these gradients, though.
            return self.objective.idle(self.encode(self.blank_clip())), {}
        pooled = self.pooled_target(batch)
        target = self.objective.targets(pooled.tokens, pooled.slots, pooled.log_weights)
        with self.timed("student"):
            tokens = self.encode(batch.video)
        losses = self.objective.loss(tokens, target)
        with self.timed("metrics"):
            figures = {"loss": losses.per_clip.mean(), "clipped_fraction": losses.clipped}
            self.step_means.add(len(batch.paths), {**figures, **self.objective.figures(tokens, target)})
        watched = {"frames": batch.video, "target": pooled.tokens, "prediction": self.objective.main(tokens)}
        return batch_loss(losses.per_clip, self.data().micro_batch_size), watched

    @override
    def clips(self, batch: ClipBatch) -> list[dict[str, Any]]:
        return [{"key": list(key), "path": path} for key, path in zip(batch.keys, batch.paths, strict=True)]

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the means of the global batch."""
        for name, value in self.step_means.reduce(self.trainer).items():
            self.log(f"train/{name}", value)

    @override
    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Compare with the teacher's unclipped features, in its raw space."""
        if not batch.paths:
            self.predict_raw(self.blank_clip())  # other ranks may wait for this one's shards
            nothing = torch.empty(0, 1, 1, 1, self.teacher.dim, device=self.device)
            for metrics in self.metrics_by_mode().values():
                metrics.update(nothing, nothing, torch.empty(0, 1, dtype=torch.bool, device=self.device))
            return
        by_mode = self.metrics_by_mode()
        for mode, (raw, own) in self.objective.compared(self.encode(batch.video), self.pooled_target(batch)).items():
            by_mode[mode].update(raw, own.tokens, own.slots, self.teacher.projector)

    @override
    def on_validation_epoch_end(self) -> None:
        for mode, metrics in self.metrics_by_mode().items():
            for name, value in metrics.compute().items():
                self.log(f"val/{name}{mode}", value)
            metrics.reset()

    def metrics_by_mode(self) -> dict[str, HeldOutMetrics]:
        """Under "" those of the student's own compression, and of an elastic student's others under "_MODE"."""
        others: Any = self.metrics_of_modes.items()
        return {"": self.metrics, **dict(others)}

    @torch.no_grad()
    def pooled_target(self, batch: ClipBatch, *, logits: bool = False) -> Pooled:
        """Raw WAP features out of the cache or the teacher; a cache has no logits."""
        if batch.targets is not None:
            return self._cached_target(batch)
        with self.timed("teacher"), whole_batches(len(batch.paths), self.data().micro_batch_size):
            features = self.teacher(batch.video)
        with self.timed("pooling"):
            pooled = self.pooled_teacher.pool(features, batch.frame_mask, log_weights=self.objective.needs_log_weights)
            return pooled._replace(logits=self.pooled_teacher.logits(features)) if logits else pooled

    def _cached_target(self, batch: ClipBatch) -> Pooled:
        """Out of a cache, whose windows may be smaller than those of the objective."""
        cache = self.data().target_cache
        assert cache is not None
        assert batch.targets is not None
        window = cache.settings.compression
        slots = real_slots(batch.frame_mask, window[0])
        stored = Pooled(batch.targets.float(), slots, None, batch.log_weights)
        return coarser(stored, factor_between(window, self.objective.pooling))

    def encode(self, video: Tensor) -> Any:
        """[B,T,3,H,W] -> student features [B,T/t,h,w,C] in the space of the loss, of an elastic student by mode."""
        with whole_batches(video.shape[0], self.data().micro_batch_size):
            return self.objective.student_tokens(self.student, video)

    def predict_raw(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> what the student says of the teacher's pooled features, [B,T/t,h,w,C] in their raw space."""
        return self.objective.raw(self.encode(video))

    def blank_clip(self) -> Tensor:
        """[1,T,3,H,W] of zeros, for a rank that has to run the student without a clip of its own."""
        data = self.data()
        return torch.zeros(1, data.clip_frames, 3, *data.frame_format.size, device=self.device)

    def folded_encoder(self) -> LiteFrameEncoder:
        """A copy of the student, on the CPU, whose head emits raw teacher features; all ranks must ask for it."""
        with torch.device("meta"):
            encoder = LiteFrameEncoder(self.student.config).eval()
        encoder.load_state_dict(full_state_dict(self.student), assign=True)
        copy.deepcopy(self.objective.normalizer.standardizer).cpu().fold(encoder.head)
        return encoder

    def measure_statistics(self) -> ChannelStatistics:
        """Statistics of the teacher's pooled features over the first clips of all ranks; each must call it."""
        clips, running = self.target_settings.statistics_clips, RunningStatistics(self.teacher.dim, self.device)
        tell(f"measuring target statistics on {clips} clips")
        for batch in self.data().statistics_batches(clips, self.device):
            leave_if_told(self.trainer, "stopped while measuring target statistics; --resume auto starts the run again")
            if not batch.paths:
                running.update(torch.empty(0, self.teacher.dim, device=self.device))
                continue
            with self.trainer.precision_plugin.forward_context():
                pooled = self.objective.own(self.pooled_target(batch))
            running.update(pooled.tokens[pooled.slots].flatten(0, -2))  # [tokens,C]
        return running.freeze()

    def timed(self, part: str) -> AbstractContextManager[Any]:
        """A range that --profile measures."""
        return self.trainer.profiler.profile(part)  # type: ignore[attr-defined]

    @override
    def data(self) -> ClipDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            raise ValueError("CTDModule needs a ClipDataModule: pass it to the trainer as datamodule=")
        return data
