"""Would the live teacher give what a cache of targets holds? A random sample of it, decoded and computed again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from lightning.fabric import Fabric
from transformers.utils.logging import disable_progress_bar

from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.distill.cache.builder import LiveTargets, live_targets
from liteframe.distill.cache.codec import decode_jpeg
from liteframe.distill.cache.reader import TargetCache
from liteframe.distill.cache.settings import CacheSettings
from liteframe.distill.clip_view import ClipView
from liteframe.distill.clips import Clip, collate_clips
from liteframe.distill.speed import prepare_teacher
from liteframe.models.teacher.load import load_teacher
from liteframe.reduce.pooled_teacher import PooledTeacher
from liteframe.training.cache.verify import Advance, ClipCheck, check_clips

DEADLINE = 60.0
# The error of a sound clip may be this large: twice what the codec rounds and what resizing on a GPU changes (0.003 on
# toyworld). A whole ViT of 24 layers in bfloat16 is 0.03 from the same in float32, and from itself on another GPU.
TOLERANCE = {"bf16": 0.01, "int8": 0.03}
BFLOAT16_TEACHER = 0.04


def tolerance(settings: CacheSettings) -> float:
    """The largest `ClipCheck.error` of a sound clip."""
    return TOLERANCE[settings.codec] + (0.0 if settings.precision == "32-true" else BFLOAT16_TEACHER)


def check_sample(cache: TargetCache, count: int, seed: int, accelerator: str, advance: Advance) -> list[ClipCheck]:
    """Decode random clips again, give them to the live teacher, and compare.

    Clips that failed when the cache was built are not drawn.

    Raises:
        ValueError: the teacher cannot be loaded or has other weights.
    """
    settings = cache.settings
    fabric = Fabric(accelerator=accelerator, devices=1, precision=settings.precision)  # type: ignore[arg-type]
    disable_progress_bar()
    teacher = load_teacher(settings.teacher, **settings.teacher_options)
    if teacher.identity != settings.teacher_sha256:
        raise ValueError(f"{settings.teacher} does not have the weights that {cache.folder} was built with")
    prepare_teacher(teacher, fabric.device, settings.precision)
    teacher.to(fabric.device)
    pooled_teacher = PooledTeacher(teacher, settings.compression, settings.scope)
    transform = FrameTransform(settings.size, settings.mean, settings.std, settings.resize, settings.multiple)

    def make(clip: Clip) -> LiveTargets:
        return live_targets(collate_clips([clip]), pooled_teacher, transform, fabric, clips=1)

    with DecodeProcess(DEADLINE) as decoder:
        return check_clips(cache, partial(_check, cache, make=make, decoder=decoder), count, seed, advance)


def _check(
    cache: TargetCache,
    split: str,
    view_number: int,
    index: int,
    *,
    make: Callable[[Clip], LiveTargets],
    decoder: DecodeProcess,
) -> ClipCheck | None:
    place = f"{split} video {index}, view {view_number}"
    try:
        stored = cache.stored(split, view_number, index)
    except ValueError as error:
        return ClipCheck(place, str(error))
    if stored.failed:
        return None
    view = ClipView.from_dict(stored.facts["view"])
    try:
        frames = view.cut(decoder.read(view.video, view.indices, reader=view.reader, size=view.decode_size))
    except VideoError as error:
        return ClipCheck(place, f"the video cannot be read again: {error}")
    made = make(Clip(torch.from_numpy(frames), view, (view_number, index)))
    difference = made.pooled[0].tokens[0].cpu() - cache.codec.decode(stored.encoded).float()  # [T',h,w,C]
    off = float((difference.square().mean((0, 1, 2)).sqrt() / cache.codec.std).median())
    psnr = _psnr(stored.jpeg, made.frames[0].permute(0, 2, 3, 1).cpu().numpy(), view.size)
    check = ClipCheck(place, error=off, psnr=psnr)
    # Written so that NaN fails.
    if not off <= tolerance(cache.settings):
        problem = f"the live teacher's target differs by {off:.3g} standard deviations"
        return dataclasses.replace(check, problem=f"{view.video}: {problem}; the video or the software has changed")
    return check


def _psnr(files: Sequence[bytes], live: np.ndarray, size: tuple[int, int]) -> float | None:
    if not files:
        return None
    stored = np.stack([decode_jpeg(file, size) for file in files]).astype(np.float64)  # [T,H,W,3]
    error = np.square(stored - live).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
