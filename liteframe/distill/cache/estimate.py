"""Size and time of a cache, from a few measured clips, before anything is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from liteframe.distill.cache.codec import clip_bytes, encode_jpeg
from liteframe.distill.cache.job import CacheJob
from liteframe.distill.cache.layout import Part
from liteframe.distill.clips import Clip, RawBatch, collate_clips
from liteframe.training.progress import duration

# Clips measured, and clips tried before giving up when the first ones cannot be read.
MEASURED, TRIED = 4, 32
# JSON, digests and headers of a clip, in bytes; generous.
OVERHEAD = 1024


@dataclass(frozen=True)
class Estimate:
    """What a cache will take.

    Attributes:
        target_bytes: of a clip's target.
        frame_bytes: of a clip's frames.
        decode_seconds: of a clip, on one core.
        make_seconds: of a clip: resize, teacher, pooling, JPEG.
    """

    target_bytes: int
    frame_bytes: int
    decode_seconds: float
    make_seconds: float

    @property
    def clip_bytes(self) -> int:
        """Of all that is kept of a clip."""
        return self.target_bytes + self.frame_bytes + OVERHEAD

    def seconds(self, clips: int, workers: int, processes: int) -> float:
        """For so many clips; workers decode while the teacher computes."""
        if workers:
            each = max(self.decode_seconds / workers, self.make_seconds)
        else:
            each = self.decode_seconds + self.make_seconds
        return clips * each / processes


def measure(job: CacheJob) -> Estimate:
    """Decode a few training clips, run the teacher on them twice (the first time warms up), and time the second.

    Raises:
        ValueError: none of the first videos can be read.
    """
    clips, failure = job.data.train_clips(), ""
    found: list[Clip] = []
    seconds: list[float] = []
    for index in range(min(TRIED, job.settings.train_videos)):
        begin = time.perf_counter()
        item = clips[0, index]
        if isinstance(item, Clip):
            found.append(item)
            seconds.append(time.perf_counter() - begin)
        else:
            failure = str(item)
        if len(found) == min(MEASURED, job.clips_at_once):
            break
    if not found:
        raise ValueError(f"none of the first videos could be read, the last because: {failure}")
    # The first one has waited for the decoder to start.
    decode = min(seconds) if len(seconds) < 3 else sum(seconds[1:]) / len(seconds[1:])
    batch = collate_clips(found)
    job.make(batch)
    begin = time.perf_counter()
    frame_bytes = _make_once(job, batch)
    make = time.perf_counter() - begin
    return Estimate(
        clip_bytes(job.settings.codec, job.settings.target_shape),
        frame_bytes // len(found),
        decode,
        make / len(found),
    )


def describe(job: CacheJob, estimate: Estimate, missing: Sequence[Part], folder: Path) -> str:
    """Size and time in words.

    Raises:
        ValueError: the file system has too little space.
    """
    settings, processes = job.settings, job.fabric.world_size
    clips = sum(part.count for part in missing)
    needed = clips * estimate.clip_bytes
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    frames = settings.clip_frames
    kept = f"targets {estimate.target_bytes / frames / 1e3:.4g} kB a frame ({settings.codec})"
    if settings.jpeg_quality is not None:
        kept += f", frames {estimate.frame_bytes / frames / 1e3:.4g} kB (JPEG {settings.jpeg_quality})"
    measured = clips + settings.statistics_clips
    text = (
        f"{settings.train_videos} videos x {settings.views} views and {settings.val_videos} held out, "
        f"clips of {frames} frames of {settings.size[0]}x{settings.size[1]}\n"
        f"{kept}; {clips} clips in {len(missing)} shards to make: {readable(needed)}, "
        f"{readable(free)} free\n"
        f"about {duration(estimate.seconds(measured, job.data.workers, processes))} (h:mm:ss) on "
        f"{processes} process{'es' if processes > 1 else ''}: {estimate.make_seconds * 1e3:.3g} ms a clip for the "
        f"teacher, {estimate.decode_seconds * 1e3:.3g} ms for decoding on one of {max(1, job.data.workers)} cores"
    )
    if needed > free:
        raise ValueError(
            f"{text}\n{folder} has {readable(free)} free, the cache needs {readable(needed)}: name a folder on "
            "another disk, or take fewer --views, --codec int8, or no --frames"
        )
    return text


def readable(size: float) -> str:
    """Bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _make_once(job: CacheJob, batch: RawBatch) -> int:
    """Everything that a batch goes through; returns the bytes of its JPEG files."""
    made = job.make(batch)
    made.pooled.to(torch.bfloat16).cpu()
    if (quality := job.settings.jpeg_quality) is None:
        return 0
    frames = made.frames.permute(0, 1, 3, 4, 2).cpu().numpy()
    return sum(len(encode_jpeg(frame, quality)) for clip in frames for frame in clip)
