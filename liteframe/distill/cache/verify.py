"""Is a cache what was built, and would the live teacher give the same? Digests of all files, and a random sample."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from transformers.utils.logging import disable_progress_bar

from liteframe.data.preprocess import FrameFormat
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.distill.cache import TargetCache
from liteframe.distill.cache.build import finished_entry
from liteframe.distill.cache.codec import decode_jpeg
from liteframe.distill.cache.estimate import readable
from liteframe.distill.cache.layout import INDEX, SETTINGS, Part, all_parts
from liteframe.distill.cache.settings import CacheSettings
from liteframe.distill.clip_view import ClipView
from liteframe.distill.clips import Clip, collate_clips
from liteframe.distill.speed import prepare_teacher
from liteframe.distill.target_maker import TargetMaker
from liteframe.models.teacher.load import load_teacher


def describe_cache(folder: Path) -> str:
    """Size, bytes a frame, coverage, failures and settings.

    Raises:
        ValueError: the folder holds no cache.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} is not a target cache; make one with `liteframe cache build`")
    settings = CacheSettings.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    parts = all_parts(settings)
    found = {part: entry for part in parts if (entry := finished_entry(folder, part)) is not None}
    size = sum(entry.bytes for entry in found.values())
    clips, failed = (sum(getattr(entry, name) for entry in found.values()) for name in ("clips", "failed"))
    stored = (clips - failed) * settings.clip_frames
    state = "finished" if (folder / INDEX).is_file() else "not finished; the command that began it goes on"
    lines = [
        f"{folder}: {state}",
        f"shards    {len(found)} of {len(parts)}, {readable(size)}",
        f"frames    {stored}, {readable(size / stored) if stored else '0 bytes'} each",
        f"clips     {clips} of {sum(part.count for part in parts)}, {failed} of them could not be read",
    ]
    for name, views in (("train", settings.views), ("val", 1)):
        whole = [sum(part.count for part in found if (part.part, part.view) == (name, view)) for view in range(views)]
        videos = settings.train_videos if name == "train" else settings.val_videos
        lines.append(f"{name:<9} {sum(count == videos for count in whole)} of {views} views of {videos} videos")
    width = max(len(name) for name in asdict(settings))
    lines += ["settings"] + [f"  {name:<{width}}  {value}" for name, value in asdict(settings).items()]
    return "\n".join(lines)


Advance = Callable[[str, int, int], None]
DEADLINE = 60.0
# How far, in standard deviations of a channel (root mean square over a clip), a recomputed target may lie beyond the
# codec's bound. Resizing on a GPU moves pixels by one level against a CPU (0.003 on toyworld); a whole ViT of 24 layers
# in bf16 is 0.03 from float32; another clip differs by about 1.
ARITHMETIC = {"32-true": 1e-2, "bf16-mixed": 5e-2}


@dataclass(frozen=True)
class Comparison:
    """A stored clip beside the live teacher's.

    Attributes:
        place: part, view and index, for the message.
        problem: what is wrong, or None.
        largest: largest difference of a value, as a multiple of the codec's bound.
        beyond: root mean square of what lies beyond the bound, in standard deviations of the channel.
        psnr: of the stored frames in dB; None where there are none.
    """

    place: str
    problem: str | None = None
    largest: float = 0.0
    beyond: float = 0.0
    psnr: float | None = None


def check_files(cache: TargetCache, advance: Advance) -> list[str]:
    """Read every shard and compare its digest with the index; returns what is wrong, one line a file."""
    problems, parts = [], all_parts(cache.settings)
    for number, part in enumerate(parts):
        if (problem := _file_problem(cache, part)) is not None:
            problems.append(f"{cache.path(part)}: {problem}")
        advance("files", number + 1, len(parts))
    try:
        cache.statistics  # noqa: B018 - reads and checks it
    except ValueError as error:
        problems.append(str(error))
    return problems


def check_sample(cache: TargetCache, count: int, seed: int, accelerator: str, advance: Advance) -> list[Comparison]:
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
    frame_format = FrameFormat(settings.size, settings.mean, settings.std, settings.resize)
    make = TargetMaker(fabric, teacher, frame_format, settings.compression, settings.scope, clips=1)
    keys = [(part.part, view, index) for part in all_parts(settings) for view, index in part.keys]
    results: list[Comparison] = []
    with DecodeProcess(DEADLINE) as decoder:
        for number in np.random.default_rng(seed).permutation(len(keys)):
            compared = _compare(cache, keys[number], make, decoder)
            if compared is not None:
                results.append(compared)
            advance("sample", len(results), min(count, len(keys)))
            if len(results) >= count:
                break
    return results


def _file_problem(cache: TargetCache, part: Part) -> str | None:
    try:
        with cache.checked_path(part).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        return str(error)
    return (
        None if found == cache.index.entries[part.name].sha256 else "its bytes are not those that were written (sha256)"
    )


def _compare(cache: TargetCache, key: tuple, make: TargetMaker, decoder: DecodeProcess) -> Comparison | None:
    part, view_number, index = key
    place = f"{part} video {index}, view {view_number}"
    try:
        record = cache.record(part, view_number, index)
    except ValueError as error:
        return Comparison(place, str(error))
    if record.failed:
        return None
    view = ClipView.from_dict(record.facts["view"])
    try:
        frames = view.cut(decoder.read(view.video, view.indices, reader=view.reader, size=view.decode_size))
    except VideoError as error:
        return Comparison(place, f"the video cannot be read again: {error}")
    made = make(collate_clips([Clip(torch.from_numpy(frames), view, (view_number, index))]))
    stored, bound = cache.codec.decode(record.encoded).float(), cache.codec.bound(record.encoded)
    difference = (made.pooled[0].cpu() - stored).abs()
    beyond = (difference - bound).clamp_min(0) / cache.codec.std
    result = Comparison(
        place,
        largest=float((difference / bound.clamp_min(1e-30)).max()),
        beyond=float(beyond.square().mean().sqrt()),
        psnr=_psnr(record.jpeg, made.frames[0].permute(0, 2, 3, 1).cpu().numpy(), cache.settings.size),
    )
    # Written so that NaN fails.
    if not result.beyond <= ARITHMETIC[cache.settings.precision]:
        problem = (
            f"the live teacher's target differs by {result.beyond:.3g} standard deviations beyond the codec's error"
        )
        return dataclasses.replace(result, problem=f"{view.video}: {problem}; the video or the software has changed")
    return result


def _psnr(files: Sequence[bytes], live: np.ndarray, size: tuple[int, int]) -> float | None:
    if not files:
        return None
    stored = np.stack([decode_jpeg(file, size) for file in files]).astype(np.float64)
    error = np.square(stored - live).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
