"""Compressed token distillation (CTD, arXiv 2605.17260) as a Lightning module: wiring, no maths of its own.

Shapes: B clips, T frames, H x W pixels, (h,w) compressed grid, C teacher channels.
"""

import copy
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save
from torch import Tensor, nn

from liteframe.data.clips import ClipBatch, FrameFormat
from liteframe.data.datamodule import ClipDataModule
from liteframe.distill.losses import LossName, batch_loss, clip_losses, drop_large_losses, token_losses
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.distill.statistics import FeatureStatistics
from liteframe.distill.student_setup import build_student, check_grids, unfold_head
from liteframe.distill.targets import TargetBuilder, TargetSettings, pool_features
from liteframe.models.student import LiteFrameConfig, LiteFrameEncoder
from liteframe.models.teacher import load_teacher
from liteframe.training.run_folder import write_atomically
from liteframe.training.schedule import OptimizerSettings, configure_adamw, total_steps
from liteframe.training.step_means import StepMeans


@dataclass
class TeacherSettings:
    """Which teacher, as `load_teacher` takes it.

    Attributes:
        name: "timm/<model>", a Hugging Face id, or a local folder (a ViT or a whole VLM).
        pretrained: False takes random weights (to try things out).
        options: further keyword arguments.
    """

    name: str
    pretrained: bool = True
    options: dict[str, Any] = field(default_factory=dict)


class CTDModule(LightningModule):
    """Trains a LiteFrame student to emit its teacher's weighted average pooled features.

    Args:
        teacher: whom to learn from.
        student: shape of the student; teacher_dim and preprocessing are taken from the teacher.
        target: how targets are pooled, clipped and standardised.
        loss: between student and target.
        init: weights to start from: cut from the teacher, or random.
        init_from: folder of a saved encoder to start from instead.
        optimizer: AdamW and its schedule.
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
        compile: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        self.compiled, self.activation_checkpointing = compile, activation_checkpointing
        self.teacher_settings, self.student_config, self.target_settings = teacher, student, target
        self.loss_name, self.init, self.init_from, self.optimizer_settings = loss, init, init_from, optimizer
        self.nominal = 1
        self.step_means = StepMeans("loss", "cosine", "clipped_fraction")

    def configure_model(self) -> None:
        """Load the teacher, build the student and tell the data how frames must look."""
        if hasattr(self, "student"):
            return
        settings, data = self.teacher_settings, self.data()
        # A Teacher hides its weights from state_dict, optimizer and checkpoints.
        self.teacher = load_teacher(settings.name, pretrained=settings.pretrained, **settings.options)
        config = dataclasses.replace(
            self.student_config,
            image_mean=self.teacher.image_mean,
            image_std=self.teacher.image_std,
            resize=self.teacher.resize,
        )
        size = data.size or (config.image_size, config.image_size)
        check_grids(config, self.teacher, size)
        self.student = build_student(config, self.teacher, self.init, self.init_from)
        if self.activation_checkpointing:
            self.student.checkpoint_activations()
        # The student's first weights are cut from the teacher's before these are rounded.
        prepare_teacher(self.teacher, self.trainer.strategy.root_device, str(self.trainer.precision))
        if self.compiled:
            compile_blocks(self.teacher.tower)
            compile_blocks(self.student)
        self.target = TargetBuilder(self.teacher.dim, self.target_settings)
        self.metrics = HeldOutMetrics(self.teacher.dim, projected=self.teacher.projector is not None)
        data.frame_format = FrameFormat(size, self.teacher.image_mean, self.teacher.image_std, self.teacher.resize)

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine."""
        return configure_adamw(self.student, self.optimizer_settings, total_steps(self.trainer))

    def on_fit_start(self) -> None:
        """Measure the target statistics unless a checkpoint brought them, and move the head to standardised space."""
        data = self.data()
        assert data.micro_batch_size is not None
        self.nominal = data.micro_batch_size
        if not self.target.ready:
            self._measure_statistics(data)
            unfold_head(self.student.head, self.target, raw=self.init == "weight_selection" or bool(self.init_from))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember whom the student learns from."""
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

    def on_train_start(self) -> None:
        """Say what is about to happen."""
        data = self.data()
        rank_zero_print(
            f"student of {count_parameters(self.student):.2f}M parameters learns from {self.teacher.name} "
            f"({count_parameters(self.teacher.tower):.2f}M, frozen): {total_steps(self.trainer)} steps of "
            f"{data.batch_size} clips x {data.clip_frames} frames, {len(data.train_entries)} videos, "
            f"{len(data.val_entries)} held out"
        )

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        """A teacher in training mode would give other targets without any error."""
        parts = [part for part in (self.teacher.tower, self.teacher.projector) if part is not None]
        if any(module.training for part in parts for module in part.modules()):
            raise RuntimeError(f"the teacher {self.teacher.name} is in training mode; something called .train() on it")

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Loss of a batch: each clip weighs 1 / nominal batch size, whatever became of the others."""
        data = self.data()
        assert data.tally is not None
        self.log("data/failed_rate", data.tally.rate)
        if not batch.paths:
            # Nothing to learn from; other ranks may wait for these gradients, though.
            return self.student(self.blank_clip()).sum() * 0.0
        pooled, slots = self.pooled_target(batch)
        target = self.target(pooled, slots)
        with self.trainer.profiler.profile("student"):
            prediction = self.encode(batch.video)
        losses = token_losses(prediction, target.values, self.loss_name)
        weight, clipped = target.weight, target.clipped
        if self.target_settings.clipping == "loss_clip":
            weight = drop_large_losses(losses, weight, self.target_settings.sigmas)
            clipped = 1 - weight.sum() / target.weight.sum().clamp_min(1)
        per_clip = clip_losses(losses, weight)
        with self.trainer.profiler.profile("metrics"), torch.no_grad():
            similar = torch.cosine_similarity(self.target.standardiser.inverse(prediction), pooled, dim=-1)
            cosine = clip_losses(similar, target.weight).mean()
            self.step_means.add(
                len(batch.paths), {"loss": per_clip.mean(), "cosine": cosine, "clipped_fraction": clipped}
            )
        return batch_loss(per_clip, self.nominal)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the means of the global batch."""
        for name, value in self.step_means.reduce(self.trainer).items():
            self.log(f"train/{name}", value)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the global norm, log what it was, and stop before a step that would destroy the weights."""
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), gradient_clip_val or math.inf)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"gradient norm is {norm.item()} at step {self.global_step}; lower model.optimizer.lr, or use "
                "model.target.clipping: token_mask. The weights before this step are in the last checkpoint"
            )
        if norm == 0:
            # No clip of the step could be read: without gradients AdamW leaves weights and moments alone.
            optimizer.zero_grad(set_to_none=True)
        self.log("train/gradient_norm", norm)
        self.log("train/lr", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        """Compare with the teacher's unclipped features, in its raw space."""
        if not batch.paths:
            self.predict_raw(self.blank_clip())  # other ranks may wait for this one's shards
            nothing = torch.empty(0, 1, 1, 1, self.teacher.dim, device=self.device)
            self.metrics.update(nothing, nothing, torch.empty(0, 1, dtype=torch.bool, device=self.device))
            return
        pooled, slots = self.pooled_target(batch)
        self.metrics.update(self.predict_raw(batch.video), pooled, slots, self.teacher.projector)

    def on_validation_epoch_end(self) -> None:
        """Log the held-out figures."""
        for name, value in self.metrics.compute().items():
            self.log(f"val/{name}", value)
        self.metrics.reset()

    @torch.no_grad()
    def pooled_target(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Raw WAP features [B,T/t,h,w,C] and the slots [B,T/t] that count."""
        settings, profiler = self.target_settings, self.trainer.profiler
        with profiler.profile("teacher"), whole_batches(len(batch.paths), self.nominal):
            features = self.teacher(batch.video)
        with profiler.profile("pooling"):
            return pool_features(features, batch.frame_mask, self.student.config.compression, settings.scope)

    def encode(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> student features [B,T/t,h,w,C] in the space of the loss."""
        with whole_batches(video.shape[0], self.nominal):
            return self.student(video)

    def predict_raw(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> student features [B,T/t,h,w,C] in the teacher's raw space."""
        return self.target.standardiser.inverse(self.encode(video))

    def blank_clip(self) -> Tensor:
        """[1,T,3,H,W] of zeros, for a rank that has to run the student without a clip of its own."""
        data = self.data()
        assert data.frame_format is not None
        return torch.zeros(1, data.clip_frames, 3, *data.frame_format.size, device=self.device)

    def folded_encoder(self) -> LiteFrameEncoder:
        """A copy of the student, on the CPU, whose head emits raw teacher features."""
        encoder = copy.deepcopy(self.student).cpu().float().eval()
        standardiser = copy.deepcopy(self.target.standardiser).cpu()
        standardiser.fold(encoder.head)
        return encoder

    @torch.no_grad()
    def _measure_statistics(self, data: ClipDataModule) -> None:
        rank_zero_print(f"measuring target statistics on {self.target_settings.statistics_clips} clips")
        statistics = FeatureStatistics(self.teacher.dim, self.device, full=self.target_settings.standardise == "phi_s")
        for batch in data.statistics_batches(self.target_settings.statistics_clips, self.device):
            if batch.paths:
                with self.trainer.precision_plugin.forward_context():
                    pooled, slots = self.pooled_target(batch)
                statistics.update(pooled[slots].flatten(0, -2))
            else:
                statistics.update(torch.empty(0, self.teacher.dim, device=self.device))
        statistics.reduce()
        self.target.fit(statistics)
        if self.trainer.is_global_zero:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.target.state_dict().items()}
            folder = Path(self.trainer.default_root_dir)
            write_atomically(folder / "target_statistics.safetensors", save(tensors, {"tokens": str(statistics.count)}))

    def data(self) -> ClipDataModule:
        """The trainer's data module."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ClipDataModule):
            raise ValueError("CTDModule needs a ClipDataModule: pass it to the trainer as datamodule=")
        return data


def count_parameters(module: nn.Module) -> float:
    """Parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@rank_zero_only
def rank_zero_print(message: str) -> None:
    """Tell the user, once."""
    print(message, file=sys.stderr, flush=True)
