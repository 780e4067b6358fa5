"""What one process of `liteframe cache build` works with: a run's clips, its teacher, and the settings of the cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset

from liteframe.data.preprocess import FrameTransform
from liteframe.data.stream import FirstClips, Key, members_of
from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.codec import TargetCodec, clip_bytes, encode_jpeg
from liteframe.distill.cache.settings import STATISTICS, CacheSettings, Codec, Split, target_shape
from liteframe.distill.clips import Clip, RawBatch, collate_clips, resize_clips
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.distill.statistics import ChannelStatistics, RunningStatistics
from liteframe.distill.student_init import check_grids
from liteframe.files import write_atomically
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher, coarser, factor_between
from liteframe.training.cache.build import (
    OVERHEAD,
    Advance,
    check_space,
    decoded_ahead,
    free_space,
    readable,
    shard_clips,
)
from liteframe.training.cache.settings import ShardKey
from liteframe.training.cache.shard import StoredClip
from liteframe.training.command import Run
from liteframe.training.report import duration

# Clips that the estimate measures, and clips that it tries.
MEASURED, TRIED = 4, 32
# Clips that the teacher takes at a time where the run does not say.
MOST_CLIPS = 16
# Threads that write JPEG files.
ENCODERS = 4

ClipKey = tuple[Split, Key]


class CacheOptions(NamedTuple):
    """How a cache keeps its clips; the rest follows from the run.

    Attributes:
        views: K clips of each training video.
        codec: of the targets.
        jpeg_quality: of the frames; None keeps none.
        shard_clips: clips in a shard; None fills about 256 MB.
    """

    views: int
    codec: Codec = "bf16"
    jpeg_quality: int | None = None
    shard_clips: int | None = None


class DecodedClips(NamedTuple):
    """A decoded batch, and for each key what became of it: {"view": ...} or {"failure": ...}."""

    batch: RawBatch
    facts: list[Mapping[str, Any]]


class LiveTargets(NamedTuple):
    """What a teacher makes of a batch, clip by clip.

    Attributes:
        pooled: of each clip alone (B is 1), before clipping and standardization.
        frames: uint8 [T,3,H,W], what the teacher saw before normalization.
    """

    pooled: list[Pooled]
    frames: list[Tensor]


@torch.no_grad()
def live_targets(
    batch: RawBatch,
    teacher: PooledTeacher,
    transform: FrameTransform,
    fabric: Fabric,
    clips: int,
    log_weights: bool = False,
) -> LiveTargets:
    """Targets as a training run computes them: resize, teacher and pooling on the fabric's device, in its precision.

    Args:
        batch: at least one clip; those of one size go to the teacher together.
        teacher: on that device.
        transform: resizes and normalizes frames.
        fabric: device and precision.
        clips: of a whole batch; others run without compiling for their size.
        log_weights: whether tokens come with their weights.

    Raises:
        ValueError: the frames do not fit the teacher or its windows.
    """
    batch = fabric.to_device(batch)
    frames = resize_clips(batch, transform)  # B x [T,3,H,W]
    made: dict[int, Pooled] = {}
    for members in members_of(batch.sizes):
        video = transform.normalized(torch.stack([frames[i] for i in members]))
        with fabric.autocast(), whole_batches(len(members), clips):
            pooled = teacher(video, batch.frame_mask[members], log_weights=log_weights)
        for number, i in enumerate(members):
            alone: Any = (None if part is None else part[number : number + 1] for part in pooled)
            made[i] = Pooled(*alone)
    return LiveTargets([made[i] for i in range(len(frames))], frames)


@dataclass(frozen=True)
class CacheBuilder:
    """The run behind a cache.

    Attributes:
        settings: of the cache.
        data: the run's videos.
        teacher: with weighted average pooling behind it, on the fabric's device.
        transform: resizes and normalizes its frames.
        fabric: device, precision and processes.
        clips_at_once: clips that the teacher takes at a time.
    """

    settings: CacheSettings
    data: ClipDataModule
    teacher: PooledTeacher
    transform: FrameTransform
    fabric: Fabric
    clips_at_once: int

    def batches_of(self, key: ShardKey) -> list[list[ClipKey]]:
        """The clips of a shard in the batches that the teacher takes."""
        split = cast(Split, key.split)
        clips: list[ClipKey] = [(split, clip) for clip in key.clips]
        return [clips[first : first + self.clips_at_once] for first in range(0, len(clips), self.clips_at_once)]

    def decode(self, batches: Iterable[list[ClipKey]]) -> Iterator[DecodedClips]:
        """The clips of these batches, in order, decoded ahead by the run's workers."""
        return decoded_ahead(LiveClips(self.data), batches, collate, self.data, self.fabric, self.clips_at_once)

    def targets(self, batch: RawBatch) -> LiveTargets:
        """Targets of at least one clip."""
        with_weights = self.settings.log_weights
        return live_targets(batch, self.teacher, self.transform, self.fabric, self.clips_at_once, with_weights)

    def measured(self, made: LiveTargets) -> list[Pooled]:
        """Of each clip, what the channel statistics are of."""
        factor = factor_between(self.settings.compression, self.settings.statistics_window)
        return [coarser(pooled, factor) for pooled in made.pooled]

    def encode(self, clips: DecodedClips, codec: TargetCodec, threads: ThreadPoolExecutor) -> list[StoredClip]:
        """What is stored of a batch, in the order of its keys; the threads write JPEG files."""
        if not clips.batch.paths:
            return [StoredClip(facts, {}) for facts in clips.facts]
        made = self.targets(clips.batch)
        images: list[list[bytes]] = [[] for _ in clips.batch.paths]
        if (quality := self.settings.jpeg_quality) is not None:
            frames = [clip.permute(0, 2, 3, 1).cpu().numpy() for clip in made.frames]  # B x [T,H,W,3]
            images = [list(threads.map(lambda frame: encode_jpeg(frame, quality), clip)) for clip in frames]
        good = iter(zip(made.pooled, images, strict=True))
        stored = []
        for facts in clips.facts:
            if "failure" in facts:
                stored.append(StoredClip(facts, {}))
                continue
            pooled, files = next(good)
            encoded = {name: tensor.cpu() for name, tensor in codec.encode(pooled.tokens[0]).items()}
            if pooled.log_weights is not None:
                encoded["log_weight"] = pooled.log_weights[0].cpu()
            stored.append(StoredClip(facts, encoded, files))
        return stored

    @property
    def max_failure_rate(self) -> float:
        """Part of the clips that may fail."""
        return self.data.max_failure_rate

    @property
    def remedy(self) -> str:
        """What to do when more do."""
        return (
            f"Run `liteframe scan {self.data.videos} -o good.jsonl` and build from good.jsonl, or allow more with "
            "--data.max_failure_rate; finished shards stay."
        )

    def estimate(self, missing: Sequence[ShardKey], folder: Path) -> str:
        """Size and time of these shards in words, from a few training clips that go through everything.

        Raises:
            ValueError: none of the first videos can be read, or the file system has too little space.
        """
        settings, processes, workers = self.settings, self.fabric.world_size, self.data.workers
        frame_bytes, decoding, making = self.measure()
        target_bytes = clip_bytes(settings.codec, settings.target_shape, settings.log_weights)
        clips, frames = sum(key.count for key in missing), settings.clip_frames
        needed = clips * (target_bytes + frame_bytes + OVERHEAD)
        free = free_space(folder)
        # Workers decode while the teacher computes.
        seconds = max(decoding / workers, making) if workers else decoding + making
        seconds *= (clips + settings.statistics_clips) / processes
        kept = f"targets {target_bytes / frames / 1e3:.4g} kB a frame ({settings.codec})"
        if settings.jpeg_quality is not None:
            kept += f", frames {frame_bytes / frames / 1e3:.4g} kB (JPEG {settings.jpeg_quality})"
        text = (
            f"{settings.train_videos} videos x {settings.views} views and {settings.val_videos} held out, "
            f"clips of {frames} frames of {settings.size[0]}x{settings.size[1]}"
            f"{' pixels at most, in their own aspect ratio' if settings.resize == 'aspect' else ''}\n"
            f"{kept}; {clips} clips in {len(missing)} shards to make: {readable(needed)}, {readable(free)} free\n"
            f"about {duration(seconds)} (h:mm:ss) on {processes} process{'es' if processes > 1 else ''}: "
            f"{making * 1e3:.3g} ms a clip for the teacher, {decoding * 1e3:.3g} ms for decoding on one of "
            f"{max(1, workers)} cores"
        )
        check_space(text, needed, free, folder, "take fewer --views, --codec int8, or no --frames")
        return text

    def measure(self) -> tuple[int, float, float]:
        """Bytes of a clip's frames; seconds to decode a clip on one core; and seconds for the rest of its way."""
        dataset, clips, seconds, failure = LiveClips(self.data), list[Clip](), list[float](), ""
        for index in range(min(TRIED, self.settings.train_videos)):
            begin = time.perf_counter()
            item = dataset["train", (0, index)]
            if isinstance(item, VideoError):
                failure = str(item)
                continue
            clips.append(item)
            seconds.append(time.perf_counter() - begin)
            if len(clips) == min(MEASURED, self.clips_at_once):
                break
        if not clips:
            raise ValueError(f"none of the first videos could be read, the last because: {failure}")
        plain = TargetCodec(self.settings.codec, torch.zeros(self.settings.dim), torch.ones(self.settings.dim))
        with ThreadPoolExecutor(ENCODERS) as threads:
            for _ in range(2):  # the first time warms up
                begin = time.perf_counter()
                stored = self.encode(collate(clips), plain, threads)
                making = (time.perf_counter() - begin) / len(clips)
        # A median, for the first clip has waited until the decoder had started.
        return sum(len(file) for clip in stored for file in clip.jpeg) // len(clips), median(seconds), making

    def write_small_files(self, folder: Path, advance: Advance) -> None:
        """Write the channel statistics of the targets, where they are not there."""
        if not (folder / STATISTICS).is_file():
            write_atomically(folder / STATISTICS, self.measure_statistics(advance).to_bytes())

    def measure_statistics(self, advance: Advance) -> ChannelStatistics:
        """Channel statistics on the clips that a run would measure them on."""
        settings = self.settings
        running = RunningStatistics(settings.dim, self.fabric.device, shared=False)
        stream = self.data.stream(self.clips_at_once, 1)
        total, done = settings.statistics_clips, 0
        for clips in self.decode([("train", key) for key in batch] for batch in FirstClips(stream, total)):
            if clips.batch.paths:
                made = self.measured(self.targets(clips.batch))
                real = [clip.tokens[clip.slots].flatten(0, -2) for clip in made]
                running.update(torch.cat(real))  # [tokens,C]
            done += len(clips.facts)
            advance("statistics", done, total)
        statistics = running.freeze()
        if not statistics.usable:
            raise ValueError(
                f"the statistics of {total} clips are unusable ({statistics.count} tokens): check the videos with "
                "`liteframe scan`, and the teacher's weights"
            )
        return statistics

    def make(self, keys: Sequence[ShardKey], folder: Path) -> Iterator[list[StoredClip]]:
        """The clips of these shards, in order, in batches that end with their shard."""
        statistics = ChannelStatistics.from_bytes((folder / STATISTICS).read_bytes(), self.settings.dim)
        codec = TargetCodec.of(self.settings, statistics)
        with ThreadPoolExecutor(ENCODERS) as threads:
            for clips in self.decode(batch for key in keys for batch in self.batches_of(key)):
                yield self.encode(clips, codec, threads)


def builder_of_run(run: Run, options: CacheOptions, fabric: Fabric) -> CacheBuilder:
    """The builder of the cache that a run can train from.

    Args:
        run: as `load_run` gives it.
        options: what the cache adds.
        fabric: device, precision and processes.

    Raises:
        ValueError: teacher, student and frames do not fit each other.
    """
    module, data = run.module, run.data
    asked, teacher, config = module.teacher_settings, module.teacher, module.student_config
    check_grids(config, teacher, data.frame_format.size)
    precision = str(fabric.strategy.precision.precision)
    identity = {**module.target_identity, **data.clip_identity()}
    window, weighed = module.objective.pooling, module.objective.needs_log_weights
    shape = target_shape(data.clip_frames, data.frame_format.size, teacher.patch_size, window, teacher.dim)
    settings = CacheSettings(
        **identity,
        teacher=os.path.abspath(asked.name) if os.path.isdir(asked.name) else asked.name,
        teacher_options={"pretrained": asked.pretrained, "deepstack": asked.deepstack, **asked.options},
        patch_size=teacher.patch_size,
        license=teacher.license,
        precision=precision,
        views=options.views,
        codec=options.codec,
        jpeg_quality=options.jpeg_quality,
        shard_clips=options.shard_clips or shard_clips(clip_bytes(options.codec, shape, weighed)),
    )
    prepare_teacher(teacher, fabric.device, precision)
    teacher.to(fabric.device)
    if module.compiled:
        compile_blocks(teacher.tower, sizes=data.size_count)
    clips_at_once = data.requested_micro_batch_size or min(data.batch_size, MOST_CLIPS)
    return CacheBuilder(settings, data, module.pooled_teacher, data.frame_format.transform(), fabric, clips_at_once)


class LiveClips(Dataset["Clip | VideoError"]):
    """`dataset[(split, key)]` is the live clip of a key of the training or the held-out videos."""

    def __init__(self, data: ClipDataModule):
        self.splits = {"train": data.train_clips(), "val": data.val_clips()}

    def __getitem__(self, key: ClipKey) -> Clip | VideoError:
        """The clip, or the reason why there is none."""
        return self.splits[key[0]][key[1]]


def collate(items: Sequence[Clip | VideoError]) -> DecodedClips:
    """A batch of the clips that could be read, and what became of each."""
    facts: list[Mapping[str, Any]] = [
        {"failure": item.to_dict()} if isinstance(item, VideoError) else {"view": item.view.to_dict()} for item in items
    ]
    return DecodedClips(collate_clips(items), facts)
