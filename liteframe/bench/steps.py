"""A step of CTD and of LMA without Lightning: loss and gradients against float32 on the CPU, and the time of CTD's.

The step of CTD is `CTDModule`'s, that of LMA `LMAModule`'s: the same teacher, pooling, objectives and LoRA.

Shapes: B clips, T frames, H x W pixels, L tokens of a prompt.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from liteframe.align.batch import ChatBatch, answer_positions
from liteframe.align.objectives.sft import SupervisedFineTuning
from liteframe.bench.comparison import relative_error, verdict
from liteframe.bench.systems import LITEFRAME, build_systems, make_inputs
from liteframe.bench.timing import Contender, as_milliseconds, time_side_by_side
from liteframe.distill.losses import batch_loss
from liteframe.distill.objectives import objectives
from liteframe.distill.speed import compile_blocks, prepare_teacher
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import Teacher
from liteframe.models.vlm.chat import IGNORE
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher

# Precision of a run -> largest error of a loss or a gradient, root mean square relative to float32 on the CPU. On a
# CPU, the worst of all gradients is 2 % (CTD) to 5 % (LMA) off under autocast, and float32 is 1e-6 off float64.
PRECISIONS = {"float32": 1e-4, "bf16-mixed": 0.15}


class CtdStep(nn.Module):
    """Loss of a micro-batch of CTD; `teacher`, `student` and the statistics of targets move with it.

    Args:
        teacher: frozen.
        student: raw weights; its loss is in the standardized space of the targets.
        video: [B,T,3,H,W] that the statistics of targets are taken from.
    """

    def __init__(self, teacher: Teacher, student: LiteFrameEncoder, video: Tensor):
        super().__init__()
        self.student = student
        self.pooled_teacher = PooledTeacher(teacher, student.config.compression)
        self.objective = objectives["ctd"](teacher.dim, TargetSettings(), "mse")
        self.target = self.objective.modules()["target"]
        running = RunningStatistics(teacher.dim, video.device)
        running.update(self.pool(video).tokens.flatten(0, -2))
        self.objective.fit(running.freeze())

    @torch.no_grad()
    def pool(self, video: Tensor) -> Pooled:
        """What a cache would hold of the clips [B,T,3,H,W]."""
        return self.pooled_teacher(video)

    def forward(self, video: Tensor, cached: Pooled | None = None) -> Tensor:
        """Mean loss of the clips [B,T,3,H,W], whose targets come from the teacher or, where given, from a cache."""
        pooled = self.pool(video) if cached is None else cached
        target = self.objective.targets(pooled.tokens.float(), pooled.slots)
        return batch_loss(self.objective.loss(self.student(video), target).per_clip, len(video))

    def to_precision(self, precision: str, device: torch.device) -> CtdStep:
        """A copy on the device as a run of this precision has it."""
        step = copy.deepcopy(self).to(device)
        prepare_teacher(step.pooled_teacher.teacher, device, precision)
        return step


class LmaStep(nn.Module):
    """Loss of a micro-batch of LMA: LoRA where PEFT is installed, and projector and encoder trained as a whole.

    Args:
        vlm: an InternVL.
        encoder: fits it.
        frames: of each of two videos.
    """

    def __init__(self, vlm: Any, encoder: LiteFrameEncoder, frames: int):
        super().__init__()
        model, config = build_systems(vlm, encoder)[LITEFRAME]
        inputs = make_inputs(model, config, frames, 2)
        for name, tensor in inputs.items():
            self.register_buffer(name, tensor)
        self.names = tuple(inputs)
        self.placeholders = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
        self.with_lora = True
        try:
            self.model = _with_lora(model)
        except ModuleNotFoundError:
            self.with_lora, self.model = False, model.train()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_("multi_modal_projector" in name or "vision_tower" in name)

    def forward(self) -> Tensor:
        """Sum of the cross-entropies of the last tokens of both prompts."""
        inputs = {name: self.get_buffer(name) for name in self.names}
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        labels[:, -8:] = inputs["input_ids"][:, -8:]
        videos = len(labels)
        batch = ChatBatch(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels,
            answers=answer_positions(labels), tokens=labels.numel(), placeholders=self.placeholders,
            pixels=inputs["pixel_values_videos"],
            video_frames=inputs["video_frames"].tolist(), media_counts=[1] * videos, media_keys=[], media_seconds=[],
            cached=[False] * videos, keys=[], failures=[],
        )  # fmt: skip
        read = {**inputs, "placeholders": self.placeholders, "use_cache": False}
        loss, _ = SupervisedFineTuning().loss(self.model, read, batch)
        return loss

    def to_precision(self, precision: str, device: torch.device) -> LmaStep:
        """A copy on the device."""
        return copy.deepcopy(self).to(device)


def _with_lora(model: nn.Module) -> nn.Module:
    """The model with LoRA, whose second factor starts at zero, where the first would get no gradient."""
    from liteframe.align.lora import LoraSettings, add_lora  # needs PEFT

    adapted = add_lora(model, LoraSettings(dropout=0.0), train_projector=True, train_encoder=True)  # type: ignore[arg-type]
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.02)
    return adapted.train()


class Found(NamedTuple):
    """Loss and gradients by name, on the CPU, float32."""

    loss: Tensor
    gradients: dict[str, Tensor]


def check_step(step: CtdStep | LmaStep, device: torch.device, *inputs: Tensor) -> Iterator[dict[str, Any]]:
    """For each precision, loss and gradients on the device against float32 on the CPU; the worst gradient decides.

    Args:
        step: float32, on the CPU.
        device: where it should be right.
        *inputs: of the step, on the CPU.
    """
    exact = _gradients(step, "float32", *inputs)
    largest = max(float(gradient.norm()) for gradient in exact.gradients.values())
    for precision, tolerance in PRECISIONS.items():
        found = _gradients(step.to_precision(precision, device), precision, *(given.to(device) for given in inputs))
        errors = {
            name: relative_error(found.gradients[name], true)
            for name, true in exact.gradients.items()
            if float(true.norm()) > 1e-6 * largest  # others are zero but for rounding
        }
        errors["loss"] = relative_error(found.loss, exact.loss)
        worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
        yield {
            "precision": precision,
            **verdict(errors[worst], tolerance),
            "worst": worst,
            "loss": float(found.loss),
            "exact_loss": float(exact.loss),
            "compared": len(errors),
        }


def _gradients(step: nn.Module, precision: str, *inputs: Tensor) -> Found:
    step.zero_grad(set_to_none=True)
    device = next(step.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        loss = step(*inputs)
    loss.backward()
    found = {name: p.grad.detach().float().cpu() for name, p in step.named_parameters() if p.grad is not None}
    return Found(loss.detach().float().cpu(), found)


def time_ctd(
    step: CtdStep, video: Tensor, *, compiled: bool, warmup: int, runs: int, progress: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Time of a training step (forward, backward, AdamW) of the clips, targets live and cached in turns, bf16-mixed.

    Decoding frames and reading a cache are not in it.

    Args:
        step: on the device, as `to_precision("bf16-mixed", device)` gives it.
        video: [B,T,3,H,W] float32 on the device.
        compiled: whether the blocks of teacher and student are compiled.
        warmup: steps of each that are not counted.
        runs: steps of each that are counted.
        progress: told what comes next.
    """
    device = video.device
    if compiled:
        torch.compiler.reset()
        for model in (step.student, step.pooled_teacher.teacher.tower):
            compile_blocks(model)
    optimizer = torch.optim.AdamW(step.student.parameters(), lr=1e-5, fused=device.type == "cuda")
    with torch.autocast(device.type, torch.bfloat16):
        cached = step.pool(video)

    def train(targets: Pooled | None) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = step(video, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    progress(f"CTD step, {'compiled' if compiled else 'eager'}, live and cached")
    ways = {"live": Contender(lambda run: None, train), "cached": Contender(lambda run: cached, train)}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for targets, timing in time_side_by_side(ways, device, warmup=warmup, runs=runs).items():
        yield {
            "targets": targets,
            "variant": "compiled" if compiled else "eager",
            "clips": video.shape[0],
            "frames": video.shape[1],
            "size": video.shape[-1],
            **as_milliseconds(timing),
            "frames_per_s": 1000 * video.shape[0] * video.shape[1] / timing.median_ms,
            "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        }
