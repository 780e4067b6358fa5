"""What a CTD run will take, with and without a target cache."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from liteframe.distill.cache.codec import clip_bytes, encode_jpeg
from liteframe.distill.clips import Clip
from liteframe.distill.command import CTDCommand
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.module import CTDModule
from liteframe.models.student.cost import Cost, VitShape, cost
from liteframe.models.teacher.base import Teacher
from liteframe.training.ema import weight_ema
from liteframe.training.plan import (
    WarmUp,
    checkpoint_bytes,
    flop_section,
    measured_section,
    memory_section,
    steps_section,
    time_section,
    warm_up,
)

JPEG_QUALITY = 90
JPEG_CLIPS = 4


def plan_ctd(arguments: list[str], views: int) -> dict[str, Any]:
    """Warm up and reckon.

    Args:
        arguments: what follows `train_ctd.py fit`, with --run and --profile.
        views: K, augmented clips of each video that a cache would hold.
    """
    warm = warm_up(CTDCommand, arguments)
    data, model, seconds = warm.run.data, warm.run.module, warm.seconds_per_step
    student, teacher = model.student, model.teacher
    frames = warm.batch_size * data.clip_frames
    here = data.batch_size * data.clip_frames
    size = data.frame_format.size
    steps = steps_section(warm, len(data.train_entries))
    trained = sum(weight.numel() for weight in model.trained.parameters())
    averaged = weight_ema(warm.run.trainer).average is not None
    own = cost(student.config, here, size, all_modes=True)
    passes = 4 if model.activation_checkpointing else 3
    taught = None if data.target_cache is not None else teacher_cost(teacher, here, size)
    return {
        "data": {
            "videos": len(data.train_entries),
            "held_out_videos": len(data.val_entries),
            "frames_per_step": frames,
            "frames": frames * steps["steps"],
            "teacher_tokens_per_step": frames * (size[0] // teacher.patch_size) * (size[1] // teacher.patch_size),
            "student_tokens_per_step": round(4 * own.tokens_per_frame * frames),
        },
        "model": {
            "trained_parameters": trained,
            "frozen_parameters": sum(weight.numel() for part in teacher.parts for weight in part.parameters()),
        },
        "steps": steps,
        "warm_up": measured_section(warm),
        "flops_of_a_step_in_one_process": flop_section(
            _whole(taught), passes * _whole(own) + 3 * data.batch_size * decoding_flops(model, data), seconds
        ),
        "memory_of_a_process": memory_section(warm, trained, _frozen_bytes(teacher), averaged),
        "disk": {
            "checkpoints_bytes": checkpoint_bytes(warm, trained, averaged),
            "encoder_bytes": 4 * sum(weight.numel() for weight in student.parameters()),
        },
        **_with_and_without_cache(warm, steps["steps"], views),
    }


def teacher_cost(teacher: Teacher, frames: int, size: tuple[int, int]) -> Cost | None:
    """FLOPs of a teacher's forward pass; None where its blocks are not those of a plain ViT.

    A tower of pairs computes half as much; that its first layer reads two frames is not counted.
    """
    try:
        weights = teacher.tower.vit_weights()
    except ValueError:
        return None
    hidden = weights.tensors["blocks.0.mlp.fc1.weight"].shape[0]
    shape = VitShape(weights.dim, weights.depth, hidden, teacher.patch_size, teacher.image_size)
    return cost(shape, -(-frames // teacher.temporal_patch), size)


def decoding_flops(model: CTDModule, data: ClipDataModule) -> int:
    """FLOPs of what the objective does to a clip's tokens before it compares them: none for CTD."""
    t, h, w = model.student.config.compression
    patch = model.teacher.patch_size
    rows, columns = (pixels // patch for pixels in data.frame_format.size)
    decode = copy.deepcopy(model.objective)
    for part in decode.modules().values():
        part.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decode.decoded(torch.empty(1, data.clip_frames // t, rows // h, columns // w, model.teacher.dim, device="meta"))
    return counter.get_total_flops()


def _whole(price: Cost | None) -> float:
    return 0.0 if price is None else price.flops + price.attention_flops


def _frozen_bytes(teacher: Teacher) -> int:
    weights = [weight for part in teacher.parts for weight in part.parameters()]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def _with_and_without_cache(warm: WarmUp, steps: int, views: int) -> dict[str, Any]:
    """Hours, and the size of a cache: the measured way, and the other one as far as arithmetic goes."""
    data, model, seconds = warm.run.data, warm.run.module, warm.seconds_per_step
    step = {part: spent / warm.measured.steps for part, spent in warm.measured.parts.items()}
    if data.target_cache is not None:
        return {"with_cache_measured": time_section(seconds, steps, warm)}
    teaching, waiting = step.get("teacher", 0.0) + step.get("pooling", 0.0), step.get("data", 0.0)
    clips = views * len(data.train_entries) + len(data.val_entries)
    making = teaching + waiting + step.get("transfer", 0.0)
    build = clips / data.batch_size * making / warm.processes
    (t, h, w), weighed = model.objective.pooling, model.objective.needs_log_weights
    patch = model.teacher.patch_size
    rows, columns = (pixels // patch for pixels in data.frame_format.size)
    shape = (-(-data.clip_frames // t), rows // h, columns // w, model.teacher.dim)
    jpeg = jpeg_bytes(data)
    return {
        "without_cache_measured": time_section(seconds, steps, warm),
        "with_targets_cached_at_best": {
            **time_section(seconds - teaching, steps, warm),
            "remark": "the measured step without teacher and pooling, if decoding keeps up",
        },
        "with_targets_and_frames_cached_at_best": {
            **time_section(seconds - teaching - waiting, steps, warm),
            "remark": "and without waiting for data",
        },
        "cache": {
            "views": views,
            "clips": clips,
            "build_hours": build / 3600,
            "targets_bf16_bytes": clips * clip_bytes("bf16", shape, weighed),
            "targets_int8_bytes": clips * clip_bytes("int8", shape, weighed),
            "jpeg_bytes_per_frame": jpeg,
            "frames_jpeg_bytes": round(clips * data.clip_frames * jpeg),
        },
    }


def jpeg_bytes(data: ClipDataModule) -> float:
    """Bytes of a frame as the cache would store it, over a few clips.

    Raises:
        ValueError: none of the first videos can be read.
    """
    clips, sizes = data.train_clips(), []
    transform = data.frame_format.transform()
    for index in range(len(data.train_entries)):
        clip = clips[0, index]
        if isinstance(clip, Clip):
            frames = transform.resized(clip.frames, clip.view.size).permute(0, 2, 3, 1).numpy()
            sizes += [len(encode_jpeg(frame, JPEG_QUALITY)) for frame in frames]
        if len(sizes) >= JPEG_CLIPS * data.clip_frames:
            break
    if not sizes:
        raise ValueError(f"no video of {data.videos} could be read; `liteframe scan {data.videos} -o good.jsonl`")
    return sum(sizes) / len(sizes)
