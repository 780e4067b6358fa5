"""What one process of `liteframe cache build` works with: a run's clips, its teacher, and the settings of the cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from liteframe.data.preprocess import FrameTransform
from liteframe.data.stream import Key, members_of
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import serve_parent
from liteframe.distill.cache.codec import TargetCodec, clip_bytes, encode_jpeg
from liteframe.distill.cache.settings import CacheSettings, Codec, ShardKey, Split, target_shape
from liteframe.distill.cache.shard import StoredClip
from liteframe.distill.clips import Clip, RawBatch, collate_clips, resize_clips
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.distill.student_init import check_grids
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher, coarser, factor_between
from liteframe.training.command import Run, automatic_precision

# Processes wait for each other twice, at the start and at the end, and one may have many more broken videos.
PATIENCE = timedelta(days=7)
# A shard holds about this much, so that a killed process loses little and a folder does not fill with small files.
SHARD_BYTES, SHARD_CLIPS = 256 << 20, (8, 256)
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
        clips: list[ClipKey] = [(key.split, clip) for clip in key.clips]
        return [clips[first : first + self.clips_at_once] for first in range(0, len(clips), self.clips_at_once)]

    def decode(self, batches: Iterable[list[ClipKey]]) -> Iterator[DecodedClips]:
        """The clips of these batches, in order, decoded ahead by the run's workers."""
        data = self.data
        loader: DataLoader[Any] = DataLoader(
            LiveClips(data),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=data.workers,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=serve_parent,
            # A batch takes at most the deadline for probing and reading each file; a dead worker must not hang us.
            timeout=(2 * data.deadline * self.clips_at_once + 60) if data.workers else 0,
            generator=torch.Generator(),
        )
        return iter(loader)

    def make(self, batch: RawBatch) -> LiveTargets:
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
        made = self.make(clips.batch)
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
    fewest, most = SHARD_CLIPS
    settings = CacheSettings(
        **identity,
        teacher=os.path.abspath(asked.name) if os.path.isdir(asked.name) else asked.name,
        teacher_options={"pretrained": asked.pretrained, **asked.options},
        patch_size=teacher.patch_size,
        license=teacher.license,
        precision=precision,
        views=options.views,
        codec=options.codec,
        jpeg_quality=options.jpeg_quality,
        shard_clips=options.shard_clips
        or min(most, max(fewest, SHARD_BYTES // clip_bytes(options.codec, shape, weighed))),
    )
    prepare_teacher(teacher, fabric.device, precision)
    teacher.to(fabric.device)
    if module.compiled:
        compile_blocks(teacher.tower, sizes=data.size_count)
    clips_at_once = data.requested_micro_batch_size or min(data.batch_size, MOST_CLIPS)
    return CacheBuilder(settings, data, module.pooled_teacher, data.frame_format.transform(), fabric, clips_at_once)


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
