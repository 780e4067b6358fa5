"""What one process of `liteframe cache build` works with: a run's clips, its teacher, and the settings of the cache."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import serve_parent
from liteframe.distill.cache.codec import TargetCodec, clip_bytes, encode_jpeg
from liteframe.distill.cache.settings import CacheSettings, Codec, ShardKey, Split, target_shape
from liteframe.distill.cache.shard import StoredClip
from liteframe.distill.clips import Clip, RawBatch, collate_clips
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.speed import compile_blocks, prepare_teacher
from liteframe.distill.student_setup import fit_to_teacher
from liteframe.distill.target_maker import TargetMaker
from liteframe.training.command import Run, automatic_precision
from liteframe.training.report import duration

# Processes wait for each other twice, at the start and at the end, and one may have many more broken videos.
PATIENCE = timedelta(days=7)
# A shard holds about this much, so that a killed process loses little and a folder does not fill with small files.
SHARD_BYTES, SHARD_CLIPS = 256 << 20, (8, 256)
# Clips that the teacher takes at a time where the run does not say.
MOST_CLIPS = 16
# Threads that write JPEG files.
ENCODERS = 4
# Clips that the estimate measures, clips that it tries, and bytes of JSON, digests and headers of a clip, generously.
MEASURED, TRIED, OVERHEAD = 4, 32, 1024

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


@dataclass(frozen=True)
class CacheBuilder:
    """The run behind a cache.

    Attributes:
        settings: of the cache.
        data: the run's videos.
        make: resize, teacher and pooling.
        fabric: device, precision and processes.
        clips_at_once: clips that the teacher takes at a time.
    """

    settings: CacheSettings
    data: ClipDataModule
    make: TargetMaker
    fabric: Fabric
    clips_at_once: int

    def batches_of(self, key: ShardKey) -> list[list[ClipKey]]:
        """The clips of a shard in the batches that the teacher takes."""
        clips: list[ClipKey] = [(key.split, clip) for clip in key.clips]
        return [clips[first : first + self.clips_at_once] for first in range(0, len(clips), self.clips_at_once)]

    def decode(self, batches: Iterable[list[ClipKey]]) -> Iterator[DecodedClips]:
        """The clips of these batches, in order, decoded ahead by the run's workers."""
        data = self.data
        loader: DataLoader[Any] = DataLoader(
            _Clips(data),
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=data.workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=serve_parent,
            # A batch takes at most the deadline for probing and reading each file; a dead worker must not hang us.
            timeout=(2 * data.deadline * self.clips_at_once + 60) if data.workers else 0,
            generator=torch.Generator(),
        )
        return iter(loader)

    def encode(self, clips: DecodedClips, codec: TargetCodec, threads: ThreadPoolExecutor) -> list[StoredClip]:
        """What is stored of a batch, in the order of its keys; the threads write JPEG files."""
        if not clips.batch.paths:
            return [StoredClip(facts, {}) for facts in clips.facts]
        made = self.make(clips.batch)
        images: list[list[bytes]] = [[] for _ in clips.batch.paths]
        if (quality := self.settings.jpeg_quality) is not None:
            frames = made.frames.permute(0, 1, 3, 4, 2).cpu().numpy()  # [B,T,H,W,3]
            images = [list(threads.map(lambda frame: encode_jpeg(frame, quality), clip)) for clip in frames]
        good = iter(zip(made.pooled, images, strict=True))
        stored = []
        for facts in clips.facts:
            if "failure" in facts:
                stored.append(StoredClip(facts, {}))
                continue
            pooled, files = next(good)
            encoded = {name: tensor.cpu() for name, tensor in codec.encode(pooled).items()}
            stored.append(StoredClip(facts, encoded, files))
        return stored

    def estimate(self, missing: Sequence[ShardKey], folder: Path) -> str:
        """Size and time of these shards in words, from a few training clips that go through everything.

        Raises:
            ValueError: none of the first videos can be read, or the file system has too little space.
        """
        settings, processes, workers = self.settings, self.fabric.world_size, self.data.workers
        frame_bytes, decoding, making = self._measure()
        target_bytes = clip_bytes(settings.codec, settings.target_shape)
        clips, frames = sum(key.count for key in missing), settings.clip_frames
        needed = clips * (target_bytes + frame_bytes + OVERHEAD)
        free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
        # Workers decode while the teacher computes.
        seconds = max(decoding / workers, making) if workers else decoding + making
        seconds *= (clips + settings.statistics_clips) / processes
        kept = f"targets {target_bytes / frames / 1e3:.4g} kB a frame ({settings.codec})"
        if settings.jpeg_quality is not None:
            kept += f", frames {frame_bytes / frames / 1e3:.4g} kB (JPEG {settings.jpeg_quality})"
        text = (
            f"{settings.train_videos} videos x {settings.views} views and {settings.val_videos} held out, "
            f"clips of {frames} frames of {settings.size[0]}x{settings.size[1]}\n"
            f"{kept}; {clips} clips in {len(missing)} shards to make: {readable(needed)}, {readable(free)} free\n"
            f"about {duration(seconds)} (h:mm:ss) on {processes} process{'es' if processes > 1 else ''}: "
            f"{making * 1e3:.3g} ms a clip for the teacher, {decoding * 1e3:.3g} ms for decoding on one of "
            f"{max(1, workers)} cores"
        )
        if needed > free:
            raise ValueError(
                f"{text}\n{folder} has {readable(free)} free, the cache needs {readable(needed)}: name a folder on "
                "another disk, or take fewer --views, --codec int8, or no --frames"
            )
        return text

    def _measure(self) -> tuple[int, float, float]:
        """Bytes of a clip's frames; seconds to decode a clip on one core; and seconds for the rest of its way."""
        dataset, clips, seconds, failure = _Clips(self.data), list[Clip](), list[float](), ""
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
                stored = self.encode(_collate(clips), plain, threads)
                making = (time.perf_counter() - begin) / len(clips)
        # A median, for the first clip has waited until the decoder had started.
        return sum(len(file) for clip in stored for file in clip.jpeg) // len(clips), median(seconds), making


def builder_of_run(run: Run, options: CacheOptions, fabric: Fabric) -> CacheBuilder:
    """The builder of the cache that a run can train from; loads its teacher.

    Args:
        run: as `load_run` gives it.
        options: what the cache adds.
        fabric: device, precision and processes.

    Raises:
        ValueError: teacher, student and frames do not fit each other.
    """
    module, data = run.module, run.data
    data.read_lists()
    wanted = module.teacher_settings
    module.teacher = teacher = wanted.load()
    config, data.frame_format = fit_to_teacher(module.student_config, teacher, data.size)
    precision = str(fabric.strategy.precision.precision)
    identity = {**module.target_identity(config), **data.clip_identity()}
    shape = target_shape(data.clip_frames, data.frame_format.size, teacher.patch_size, config.compression, teacher.dim)
    fewest, most = SHARD_CLIPS
    settings = CacheSettings(
        **identity,
        teacher=os.path.abspath(wanted.name) if os.path.isdir(wanted.name) else wanted.name,
        teacher_options={"pretrained": wanted.pretrained, **wanted.options},
        patch_size=teacher.patch_size,
        license=teacher.license,
        precision=precision,
        views=options.views,
        codec=options.codec,
        jpeg_quality=options.jpeg_quality,
        shard_clips=options.shard_clips or min(most, max(fewest, SHARD_BYTES // clip_bytes(options.codec, shape))),
    )
    prepare_teacher(teacher, fabric.device, precision)
    teacher.to(fabric.device)
    if module.compiled:
        compile_blocks(teacher.tower)
    clips_at_once = data.requested_micro_batch_size or min(data.batch_size, MOST_CLIPS)
    make = TargetMaker(fabric, teacher, data.frame_format, config.compression, settings.scope, clips_at_once)
    return CacheBuilder(settings, data, make, fabric, clips_at_once)


def launch_fabric(trainer: Any) -> Fabric:
    """The processes that torchrun started, or one.

    Args:
        trainer: settings of the run's trainer; device and precision are taken from them.
    """
    precision: Any = trainer.precision or automatic_precision(trainer.accelerator)
    if not TorchElasticEnvironment.detect():
        return Fabric(accelerator=trainer.accelerator, devices=1, precision=precision)
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=trainer.accelerator,
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        # gloo on GPUs too: they exchange a list and two barriers, and NCCL's watchdog would not wait.
        strategy=DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
        precision=precision,
    )
    fabric.launch()
    return fabric


def readable(size: float) -> str:
    """Bytes in decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


class _Clips(Dataset["Clip | VideoError"]):
    """`dataset[(split, key)]` is the live clip of a key of the training or the held-out videos."""

    def __init__(self, data: ClipDataModule):
        self.splits = {"train": data.train_clips(), "val": data.val_clips()}

    def __getitem__(self, key: ClipKey) -> Clip | VideoError:
        return self.splits[key[0]][key[1]]


def _collate(items: Sequence[Clip | VideoError]) -> DecodedClips:
    facts: list[Mapping[str, Any]] = [
        {"failure": item.to_dict()} if isinstance(item, VideoError) else {"view": item.view.to_dict()} for item in items
    ]
    return DecodedClips(collate_clips(items), facts)
