"""Is a cache what was built, and would the live teacher give the same? All digests, a random sample, and a summary."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from transformers.utils.logging import disable_progress_bar

from liteframe.data.preprocess import FrameTransform
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.distill.cache.build import whole_shards
from liteframe.distill.cache.builder import LiveTargets, live_targets, readable
from liteframe.distill.cache.codec import decode_jpeg
from liteframe.distill.cache.reader import INDEX, SETTINGS, TargetCache
from liteframe.distill.cache.settings import CacheSettings, Split, all_shards
from liteframe.distill.clip_view import ClipView
from liteframe.distill.clips import Clip, collate_clips
from liteframe.distill.speed import prepare_teacher
from liteframe.models.teacher.load import load_teacher
from liteframe.reduce.pooled_teacher import PooledTeacher

Advance = Callable[[str, int, int], None]
DEADLINE = 60.0
# The error of a sound clip may be this large: twice what the codec rounds and what resizing on a GPU changes (0.003 on
# toyworld). A whole ViT of 24 layers in bfloat16 is 0.03 from the same in float32, and from itself on another GPU.
TOLERANCE = {"bf16": 0.01, "int8": 0.03}
BFLOAT16_TEACHER = 0.04


def describe_cache(folder: Path) -> str:
    """Size, bytes a frame, coverage, failures and settings.

    Raises:
        ValueError: the folder holds no cache.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} is not a target cache; make one with `liteframe cache build`")
    settings = CacheSettings.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    keys, shards = all_shards(settings), whole_shards(folder, settings)
    size = sum(info.bytes for info in shards.values())
    clips, failed = (sum(getattr(info, name) for info in shards.values()) for name in ("clips", "failed"))
    stored = (clips - failed) * settings.clip_frames
    state = "finished" if (folder / INDEX).is_file() else "not finished; the command that began it goes on"
    lines = [
        f"{folder}: {state}",
        f"shards    {len(shards)} of {len(keys)}, {readable(size)}",
        f"frames    {stored}, {readable(size / stored) if stored else '0 bytes'} each",
        f"clips     {clips} of {sum(key.count for key in keys)}, {failed} of them could not be read",
    ]
    for split, views in (("train", settings.views), ("val", 1)):
        whole = [sum(key.count for key in shards if (key.split, key.view) == (split, view)) for view in range(views)]
        videos = settings.train_videos if split == "train" else settings.val_videos
        lines.append(f"{split:<9} {sum(count == videos for count in whole)} of {views} views of {videos} videos")
    width = max(len(name) for name in asdict(settings))
    lines += ["settings"] + [f"  {name:<{width}}  {value}" for name, value in asdict(settings).items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class ClipCheck:
    """A stored clip beside the live teacher's.

    Attributes:
        place: split, view and index, for the message.
        problem: what is wrong, or None.
        error: root mean square of the difference, in standard deviations of the channel; that of the median channel,
            because a channel that is nearly constant has no scale to compare with. Another clip differs by about 1.
        psnr: of the stored frames in dB; None where there are none.
    """

    place: str
    problem: str | None = None
    error: float = 0.0
    psnr: float | None = None


def tolerance(settings: CacheSettings) -> float:
    """The largest `ClipCheck.error` of a sound clip."""
    return TOLERANCE[settings.codec] + (0.0 if settings.precision == "32-true" else BFLOAT16_TEACHER)


def check_files(cache: TargetCache, advance: Advance) -> list[str]:
    """Read every clip and compare its digest; returns what is wrong, one line a file."""
    problems, keys = [], all_shards(cache.settings)
    for number, key in enumerate(keys):
        try:
            for view, index in key.clips:
                cache.stored(key.split, view, index)
        except ValueError as error:
            problems.append(str(error))
        advance("files", number + 1, len(keys))
    try:
        cache.statistics  # noqa: B018 - reads and checks it
    except ValueError as error:
        problems.append(str(error))
    return problems


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

    clips = [(key.split, view, index) for key in all_shards(settings) for view, index in key.clips]
    checks: list[ClipCheck] = []
    with DecodeProcess(DEADLINE) as decoder:
        for number in np.random.default_rng(seed).permutation(len(clips)):
            if (check := _check(cache, clips[number], make, decoder)) is not None:
                checks.append(check)
            advance("sample", len(checks), min(count, len(clips)))
            if len(checks) >= count:
                break
    return checks


def _check(
    cache: TargetCache, clip: tuple[Split, int, int], make: Callable[[Clip], LiveTargets], decoder: DecodeProcess
) -> ClipCheck | None:
    split, view_number, index = clip
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
