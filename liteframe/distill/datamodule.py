"""Clips for CTD: which videos train, which are held out, and a stream of batches that a resumed run continues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Sampler
from typing_extensions import override

from liteframe.data.manifest import VideoEntry, hold_out, list_digest, load_manifest
from liteframe.data.preprocess import FrameFormat
from liteframe.data.stream import BucketedStream, ClipStream, FirstClips, FixedBatches, Key
from liteframe.data.video.process import DecodeProcess, serve_parent
from liteframe.distill.buckets import Shape, clip_sizes, frame_shapes
from liteframe.distill.cache import TargetCache
from liteframe.distill.cache.dataset import CachedClips
from liteframe.distill.clip_view import Augmentation
from liteframe.distill.clips import ClipBatch, ClipDataset, RawBatch, collate_clips, dress
from liteframe.training.failures import FailureTally, agree_on_failures
from liteframe.training.resume import refuse_other_contents
from liteframe.training.schedule import divide_batch


class ClipDataModule(LightningDataModule):
    """Videos -> batches of dense clips.

    The lists are read when they are first asked for, and no video before a loader runs.

    Args:
        videos: folder of videos, or a manifest (JSONL, as `liteframe scan` writes it).
        val_videos: the same for held-out videos; None holds out a part of `videos`.
        val_fraction: that part, chosen by a hash of the file name; 0 trains on everything and validates on nothing.
        batch_size: clips in an optimizer step, over all devices.
        micro_batch_size: clips on a device at a time; None means batch_size / devices. Gradients are accumulated.
        clip_frames: frames of a clip.
        min_fps: lowest rate of a clip in frames per second.
        size: frame size in pixels, one number or (height, width); None takes that of `frame_format`. Where frames keep
            their aspect ratio, one number, whose square is the budget of pixels.
        augment: crop and flip of training clips.
        workers: processes that decode; 0 decodes in the training process's own turn.
        deadline: seconds that reading one file may take.
        max_failure_rate: part of clips that may fail before the run stops.
        seed: seed of order, positions and augmentation.
        cache: folder of a target cache (`liteframe cache build`): clips and targets come from it and no teacher runs.
        frame_format: how the teacher wants frames; a training command takes it from the module.
    """

    def __init__(
        self,
        videos: str,
        frame_format: FrameFormat,
        val_videos: str | None = None,
        val_fraction: float = 0.05,
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        clip_frames: int = 16,
        min_fps: float = 1.0,
        size: int | tuple[int, int] | None = None,
        augment: Augmentation = Augmentation(),  # noqa: B008 - shown as the default in --help, never changed
        workers: int = 4,
        deadline: float = 30.0,
        max_failure_rate: float = 0.05,
        seed: int = 0,
        cache: str | None = None,
    ):
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"data.batch_size={batch_size} must be at least 1 and data.workers={workers} at least 0")
        self.videos, self.val_videos, self.val_fraction = videos, val_videos, val_fraction
        self.batch_size, self.requested_micro_batch_size = batch_size, micro_batch_size
        self.clip_frames, self.min_fps, self.augment = clip_frames, min_fps, augment
        if frame_format.resize == "aspect" and isinstance(size, tuple | list):
            raise ValueError(
                f"data.size is {list(size)}, but frames keep their aspect ratio (model.student.resize is 'aspect'): "
                "give one number, whose square is the budget of pixels"
            )
        size = (size, size) if isinstance(size, int) else size
        self.frame_format = frame_format if size is None else replace(frame_format, size=size)
        self.workers, self.deadline, self.seed = workers, deadline, seed
        self.decoder = DecodeProcess(deadline)  # of all data sets; each worker gets its own
        self.max_failure_rate, self.cache = max_failure_rate, cache

    @cached_property
    def target_cache(self) -> TargetCache | None:
        """Where clips and targets come from, if not from the videos; raises ValueError if it is no whole cache."""
        return None if self.cache is None else TargetCache.open(self.cache)

    @cached_property
    def _entries(self) -> tuple[list[VideoEntry], list[VideoEntry]]:
        entries = load_manifest(self.videos)
        if self.val_videos is not None:
            return entries, load_manifest(self.val_videos)
        return hold_out(entries, self.val_fraction)

    @property
    def train_entries(self) -> list[VideoEntry]:
        """Videos that are trained on; raises ValueError if the list cannot be read."""
        return self._entries[0]

    @property
    def val_entries(self) -> list[VideoEntry]:
        """Held-out videos; raises ValueError if the list cannot be read."""
        return self._entries[1]

    @property
    def size_count(self) -> int:
        """How many sizes training clips have."""
        return 1 if self.sizes is None else len(set(self.sizes[0]))

    @cached_property
    def sizes(self) -> tuple[list[Shape], list[Shape]] | None:
        """(height, width) of the clips of each training and each held-out video, by which batches are made.

        None where all have the one of `frame_format`. All ranks must ask for it: the first one looks, for all.
        """
        if self.frame_format.resize != "aspect":
            return None
        trainer = self.trainer
        shapes: list[list[Shape | None]] = []
        if trainer is None or trainer.is_global_zero:
            shapes = [frame_shapes(entries, self.decoder) for entries in self._entries]
        if trainer is not None and trainer.world_size > 1:
            shapes = trainer.strategy.broadcast(shapes)
        train, val = (clip_sizes(part, self.frame_format) for part in shapes)
        return train, val

    @cached_property
    def tally(self) -> FailureTally:
        """Clips that the run could not read."""
        return FailureTally(
            Path(self._trainer().default_root_dir) / "bad_videos.jsonl",
            self.max_failure_rate,
            remedy=f"Run `liteframe scan {self.videos} -o good.jsonl` and train on good.jsonl, "
            "or allow more with --data.max_failure_rate.",
        )

    @override
    def setup(self, stage: str) -> None:
        """Read the lists before a student is built."""
        self.target_cache, self._entries, self.sizes  # noqa: B018 - kept where they are

    @property
    def micro_batch_size(self) -> int:
        """Clips of one forward pass on one device; batch_size may take several, accumulated."""
        return divide_batch(self.batch_size, self.requested_micro_batch_size, self._trainer().world_size)[0]

    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each training video about once."""
        return -(-len(self.train_entries) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream, from the trainer's global step on."""
        trainer = self._trainer()
        stream = self._stream(
            batches=self.steps_per_epoch() * trainer.accumulate_grad_batches,
            position=lambda: trainer.global_step * trainer.accumulate_grad_batches,
        )
        return self._loader(self.train_clips(), stream)

    def statistics_batches(self, clips: int, device: torch.device) -> Iterator[ClipBatch]:
        """The first `clips` training clips (over all ranks), on the device; the same for any number of devices."""
        trainer = self._trainer()
        first = FirstClips(self._stream(batches=1), clips)
        for batch in self._loader(self.train_clips(), first, persistent=False):
            self.tally.record(len(batch.paths), batch.failures)
            agree_on_failures(trainer, self.tally)
            yield dress(move_data_to_device(batch, device), self.frame_format.transform())

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The middle clip of every held-out video; no loader if there is none."""
        if not self.val_entries:
            return []
        trainer = self._trainer()
        buckets = [None] * len(self.val_entries) if self.sizes is None else self.sizes[1]
        batches = FixedBatches(buckets, self.micro_batch_size, rank=trainer.global_rank, world_size=trainer.world_size)
        return self._loader(self.val_clips(), batches)

    def on_before_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> RawBatch:
        """Count what failed before the batch is used."""
        self.tally.record(len(batch.paths), batch.failures)
        return batch

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> ClipBatch:
        """Resize and normalize on the device; workers only decode, crop and ship bytes."""
        return dress(batch, self.frame_format.transform())

    @cached_property
    def contents(self) -> dict[str, str | None]:
        """Digests of the training videos and of the cache, by the settings that name them."""
        cache, entries = self.target_cache, self.train_entries
        shapes = "" if self.sizes is None else hashlib.sha256(repr(self.sizes[0]).encode()).hexdigest()[:16]
        return {
            "data.videos": f"a list of {len(entries)} for training ({list_digest(entries)[:16]})"
            + (f" with clips of sizes {shapes}" if shapes else ""),
            "data.cache": None if cache is None else cache.digest,
        }

    def state_dict(self) -> dict[str, Any]:
        """What decides which clip comes when beside the settings, and the failures so far."""
        return {"contents": self.contents, "tally": self.tally.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the failures counted so far.

        Raises:
            ValueError: the stream of clips would not continue, because videos or the cache are others.
        """
        refuse_other_contents(state_dict["contents"], self.contents)
        self.tally.load_state_dict(state_dict["tally"])

    def _stream(self, batches: int, **position: Any) -> ClipStream:
        trainer = self._trainer()
        return self.stream(
            self.micro_batch_size, batches, rank=trainer.global_rank, world_size=trainer.world_size, **position
        )

    def stream(self, batch_size: int, batches: int, **place: Any) -> ClipStream:
        """The order of training clips; the clips of a step share a size. Arguments as of ClipStream."""
        if self.sizes is None:
            return ClipStream(len(self.train_entries), batch_size, batches, seed=self.seed, **place)
        return BucketedStream(self.sizes[0], batch_size, batches, step=self.batch_size, seed=self.seed, **place)

    def train_clips(self) -> ClipDataset | CachedClips:
        """Clips of the training videos by key (epoch, index)."""
        return self._dataset("train", self.train_entries, self.augment)

    def val_clips(self) -> ClipDataset | CachedClips:
        """The middle clips of the held-out videos by key (0, index)."""
        return self._dataset("val", self.val_entries, None)

    def clip_identity(self) -> dict[str, Any]:
        """What clips and their frames depend on, under the names of CacheSettings."""
        frames = self.frame_format
        return {
            **{"size": frames.size, "mean": frames.mean, "std": frames.std, "resize": frames.resize},
            "multiple": frames.multiple,
            **{"clip_frames": self.clip_frames, "min_fps": self.min_fps, "seed": self.seed},
            **asdict(self.augment),
            **{"train_videos": len(self.train_entries), "train_list": list_digest(self.train_entries)},
            **{"val_videos": len(self.val_entries), "val_list": list_digest(self.val_entries)},
        }

    def _dataset(
        self, part: Literal["train", "val"], entries: list[VideoEntry], augment: Augmentation | None
    ) -> ClipDataset | CachedClips:
        sizes = None if self.sizes is None else self.sizes[part == "val"]
        clips = ClipDataset(
            entries, self.frame_format, clip_frames=self.clip_frames, sizes=sizes, min_fps=self.min_fps,
            augment=augment, seed=self.seed, decoder=self.decoder,
        )  # fmt: skip
        return clips if self.target_cache is None else CachedClips(self.target_cache, part, clips)

    def _loader(
        self, dataset: ClipDataset | CachedClips, batches: Sampler[list[Key]], *, persistent: bool = True
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate_clips,
            num_workers=self.workers,
            persistent_workers=persistent and self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=serve_parent,
            # A batch takes at most the deadline for probing and reading each file; a dead worker must not hang us.
            timeout=(2 * self.deadline * self.micro_batch_size + 60) if self.workers else 0,
            # The loader would draw from the global generator, and its state would depend on how often it was restarted.
            generator=torch.Generator(),
        )

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise ValueError("ClipDataModule works inside a Trainer: pass it as datamodule=")
        return self.trainer
