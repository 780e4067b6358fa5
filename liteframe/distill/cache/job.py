"""What one process of `liteframe cache build` works with: the run's clips, its teacher, and the cache's settings."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset, Sampler

from liteframe.data.stream import ClipStream, FirstClips, Key
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import serve_parent
from liteframe.distill.cache.codec import clip_bytes
from liteframe.distill.cache.layout import Part, PartName
from liteframe.distill.cache.settings import CacheSettings, Codec
from liteframe.distill.clips import Clip, RawBatch, collate_clips
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.speed import compile_blocks, prepare_teacher
from liteframe.distill.student_setup import fit_to_teacher
from liteframe.distill.target_maker import TargetMaker
from liteframe.training.command import Run, automatic_precision

# Processes wait for each other twice, at the start and at the end, and one may have many more broken videos.
PATIENCE = timedelta(days=7)


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


# A shard holds about this much, so that a killed process loses little and a folder does not fill with small files.
SHARD_BYTES = 256 << 20
SHARD_CLIPS = 256
# Clips that the teacher takes at a time where the run does not say.
MOST_CLIPS = 16

ClipKey = tuple[PartName, Key]


class Storage(NamedTuple):
    """How a cache keeps its clips; the rest follows from the run.

    Attributes:
        views: K clips of each training video.
        codec: of the targets.
        jpeg_quality: of the frames; None keeps none.
        part_clips: clips in a shard; None fills about 256 MB.
    """

    views: int
    codec: Codec = "bf16"
    jpeg_quality: int | None = None
    part_clips: int | None = None


class ClipFacts(NamedTuple):
    """A decoded batch, and for each key what became of it: {"view": ...} or {"failure": ...}."""

    batch: RawBatch
    facts: list[Mapping[str, Any]]


class CacheJob:
    """The run behind a cache.

    Args:
        run: as `load_run` gives it.
        storage: what the cache adds.
        fabric: device, precision and processes.

    Raises:
        ValueError: teacher, student and frames do not fit each other.
    """

    def __init__(self, run: Run, storage: Storage, fabric: Fabric):
        module, self.data, self.fabric = run.module, run.data, fabric
        self.data.read_lists()
        self.clips_at_once = self.data.requested_micro_batch_size or min(self.data.batch_size, MOST_CLIPS)
        options = module.teacher_settings
        module.teacher = self.teacher = options.load()
        config, frame_format = fit_to_teacher(module.student_config, self.teacher, self.data.size)
        self.data.frame_format = frame_format
        precision = fabric.strategy.precision.precision
        folder = os.path.isdir(options.name)
        self.settings = CacheSettings(
            teacher=os.path.abspath(options.name) if folder else options.name,
            teacher_options={"pretrained": options.pretrained, **options.options},
            patch_size=self.teacher.patch_size,
            license=self.teacher.license,
            precision=str(precision),
            views=storage.views,
            codec=storage.codec,
            jpeg_quality=storage.jpeg_quality,
            part_clips=1,
            **module.target_identity(config),
            **self.data.clip_identity(),
        )
        part_clips = storage.part_clips or clips_in_a_shard(self.settings)
        self.settings = dataclasses.replace(self.settings, part_clips=part_clips)
        prepare_teacher(self.teacher, fabric.device, str(precision))
        self.teacher.to(fabric.device)
        if module.compiled:
            compile_blocks(self.teacher.tower)
        self.make = TargetMaker(
            fabric, self.teacher, frame_format, config.compression, self.settings.scope, self.clips_at_once
        )

    def batches_of(self, part: Part) -> list[list[ClipKey]]:
        """The keys of a part in the batches that the teacher takes."""
        keys: list[ClipKey] = [(part.part, key) for key in part.keys]
        return [keys[first : first + self.clips_at_once] for first in range(0, len(keys), self.clips_at_once)]

    def statistics_keys(self) -> list[list[ClipKey]]:
        """The clips that a run measures its statistics on, in batches."""
        stream = ClipStream(self.settings.train_videos, self.clips_at_once, 1, seed=self.settings.seed)
        return [[("train", key) for key in batch] for batch in FirstClips(stream, self.settings.statistics_clips)]

    def decode(self, batches: Sampler[list[ClipKey]] | Sequence[list[ClipKey]]) -> Iterator[ClipFacts]:
        """The clips of these batches, in order, decoded ahead by the run's workers."""
        data = self.data
        loader: DataLoader[Any] = DataLoader(
            ClipsOfParts(data),
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


class PartBatches(Sampler[list[ClipKey]]):
    """The batches of several parts, one after the other, without a list of them all."""

    def __init__(self, job: CacheJob, parts: Sequence[Part]):
        self.job, self.parts = job, parts

    def __len__(self) -> int:
        """Batches."""
        return sum(-(-part.count // self.job.clips_at_once) for part in self.parts)

    def __iter__(self) -> Iterator[list[ClipKey]]:
        for part in self.parts:
            yield from self.job.batches_of(part)


class ClipsOfParts(Dataset["Clip | VideoError"]):
    """`dataset[(part, key)]` is the live clip of a key of the training or the held-out videos."""

    def __init__(self, data: ClipDataModule):
        self.parts = {"train": data.train_clips(), "val": data.val_clips()}

    def __getitem__(self, key: ClipKey) -> Clip | VideoError:
        """The clip, or the reason why there is none."""
        return self.parts[key[0]][key[1]]


def clips_in_a_shard(settings: CacheSettings) -> int:
    """Clips whose targets fill about 256 MB; at least 8, at most 256."""
    return min(SHARD_CLIPS, max(8, SHARD_BYTES // clip_bytes(settings.codec, settings.target_shape)))


def _collate(items: Sequence[Clip | VideoError]) -> ClipFacts:
    facts: list[Mapping[str, Any]] = [
        {"failure": item.to_dict()} if isinstance(item, VideoError) else {"view": item.view.to_dict()} for item in items
    ]
    return ClipFacts(collate_clips(items), facts)
