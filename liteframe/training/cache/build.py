"""Builds a cache: a frozen network runs once over every clip (docs/target_cache.md).

The unit of work is a shard. It is written under a temporary name and renamed when it is whole, so a shard that is there
is finished, and its own tables say all that the index will. Processes share nothing but the folder and, at the start,
the list of missing shards; a kill at any point loses the shards being made, and any number of processes can go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset

from liteframe.data.video.process import serve_parent
from liteframe.files import file_digest, write_atomically
from liteframe.training.cache.reader import INDEX, SETTINGS, CacheIndex
from liteframe.training.cache.settings import Settings, ShardKey, all_shards
from liteframe.training.cache.shard import Shard, ShardInfo, StoredClip, pack_shard
from liteframe.training.command import automatic_precision
from liteframe.training.failures import FailureTally

LOCK, BAD_VIDEOS = ".lock", "bad_videos.jsonl"
# Processes wait for each other twice, at the start and at the end, and one may have many more broken videos.
PATIENCE = timedelta(days=7)
# A shard holds about this much, so that a killed process loses little and a folder does not fill with small files.
SHARD_BYTES, SHARD_CLIPS = 256 << 20, (8, 256)
OVERHEAD = 1024  # bytes of JSON, digests and headers of a clip, generously

Say = Callable[[str], None]
Advance = Callable[[str, int, int], None]


class Builder(Protocol):
    """A run's clips and the frozen network that they go through.

    Attributes:
        settings: of the cache.
        fabric: device, precision and processes.
        max_failure_rate: part of the clips that may fail.
        remedy: what to do when more do.
    """

    @property
    def settings(self) -> Any: ...  # noqa: D102

    @property
    def fabric(self) -> Fabric: ...  # noqa: D102

    @property
    def max_failure_rate(self) -> float: ...  # noqa: D102

    @property
    def remedy(self) -> str: ...  # noqa: D102

    def estimate(self, missing: Sequence[ShardKey], folder: Path) -> str:
        """Size and time of these shards in words; raises ValueError if the disk is too small."""
        ...

    def write_small_files(self, folder: Path, advance: Advance) -> None:
        """Write what this kind of cache has beside the settings."""
        ...

    def make(self, keys: Sequence[ShardKey], folder: Path) -> Iterator[list[StoredClip]]:
        """The clips of these shards, in order, in batches that end with their shard."""
        ...


def build_cache(builder: Builder, folder: Path, *, say: Say, advance: Advance) -> None:
    """Build a cache, or go on with it.

    Every process of the fabric calls this.

    Args:
        builder: what is stored, and how it is made.
        folder: of the cache; made if it is missing.
        say: prints a message, called on the first process.
        advance: called on every process with what is being made, and the clips done and to do by this process.

    Raises:
        ValueError: the folder holds something else or a cache with other settings, or the disk is too small.
        TooManyBadVideosError: more clips fail than `data.max_failure_rate` allows.
        OSError: a file cannot be written; what was finished stays, and the same command goes on.
    """
    fabric, settings = builder.fabric, builder.settings
    with contextlib.ExitStack() as stack:
        missing: list[ShardKey] = []
        if fabric.is_global_zero:
            check_folder(folder, settings)
            whole = whole_shards(folder, settings)
            missing = [key for key in all_shards(settings) if key not in whole]
            if missing:
                say(builder.estimate(missing, folder))
            stack.enter_context(sole_builder(folder))
            if missing or not all((folder / name).is_file() for name in (SETTINGS, *settings.small_files, INDEX)):
                prepare(builder, folder, advance)
        missing = fabric.broadcast(missing)
        mine = missing[fabric.global_rank :: fabric.world_size]
        make_shards(builder, mine, folder, advance)
        fabric.barrier()
        if fabric.is_global_zero and not (folder / INDEX).is_file():
            write_index(folder, settings)


def check_folder(folder: Path, settings: Settings) -> None:
    """Refuse a folder that this build must not touch.

    Raises:
        ValueError: it holds other files, or a cache with other settings; each difference is named.
    """
    if not (folder / SETTINGS).is_file():
        # A build that was killed at once has left a lock.
        begun = folder.is_dir() and all(path.name == LOCK or path.suffix == ".tmp" for path in folder.iterdir())
        if folder.exists() and not begun:
            raise ValueError(f"{folder} is not empty and holds no {settings.kind}; name another folder")
        return
    try:
        there = type(settings).from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS}: {error}; delete {folder} or name another folder") from error
    differences = there.differences(settings, ignored=settings.names)
    if differences:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differences)}. Give the build these values, or name "
            "another folder"
        )


def whole_shards(folder: Path, settings: Settings) -> dict[ShardKey, ShardInfo]:
    """The finished shards of a folder, in their order; what is no shard of these settings is not among them."""
    infos = {}
    for key in all_shards(settings):
        with contextlib.suppress(ValueError, FileNotFoundError):
            infos[key] = Shard(folder / f"{key.name}.safetensors", key, settings).info
    return infos


@contextlib.contextmanager
def sole_builder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which a killed process loses.

    Raises:
        ValueError: another build holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another `liteframe cache` command is writing to {folder}; wait for it") from error
        yield


def prepare(builder: Builder, folder: Path, advance: Advance) -> None:
    """Settings and small files, after the left-overs of killed builds are gone; until the end it is not a cache."""
    (folder / INDEX).unlink(missing_ok=True)
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)
    text = builder.settings.to_json()
    if not (folder / SETTINGS).is_file() or (folder / SETTINGS).read_text(encoding="utf-8") != text:
        write_atomically(folder / SETTINGS, text.encode())
    if not all((folder / name).is_file() for name in builder.settings.small_files):
        builder.write_small_files(folder, advance)


def make_shards(builder: Builder, keys: Sequence[ShardKey], folder: Path, advance: Advance) -> None:
    """Make these shards, one after the other."""
    made = builder.make(keys, folder)
    total, done = sum(key.count for key in keys), 0
    # Storage that went away must not fill a cache with failures.
    tally = FailureTally(folder / BAD_VIDEOS, builder.max_failure_rate, remedy=builder.remedy)
    for key in keys:
        clips: list[StoredClip] = []
        while len(clips) < key.count:
            clips += next(made)
            advance("clips", done + len(clips), total)
        done += key.count
        bad = [dict(clip.facts["failure"]) for clip in clips if clip.failed]
        tally.record(len(clips) - len(bad), bad)
        tally.agree()
        write_atomically(folder / f"{key.name}.safetensors", pack_shard(clips, builder.settings))


def write_index(folder: Path, settings: Settings) -> None:
    """The digests of everything, which makes the folder a cache.

    Raises:
        ValueError: a shard is missing, because another process has failed.
    """
    shards, count = whole_shards(folder, settings), len(all_shards(settings))
    if len(shards) < count:
        raise ValueError(f"{count - len(shards)} shards of {folder} are missing; run the same command again")
    files = {name: file_digest(folder / name) for name in (SETTINGS, *settings.small_files)}
    index = CacheIndex(files, {key.name: info for key, info in shards.items()})
    write_atomically(folder / INDEX, index.to_json().encode())


def shard_clips(clip_bytes: int) -> int:
    """Clips of this size that a shard holds."""
    fewest, most = SHARD_CLIPS
    return min(most, max(fewest, SHARD_BYTES // clip_bytes))


def free_space(folder: Path) -> int:
    """Bytes that are free where the folder lies or will lie."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def check_space(estimate: str, needed: int, free: int, folder: Path, advice: str) -> None:
    """Refuse a cache that does not fit.

    Raises:
        ValueError: it needs more than is free; says what was estimated, and the advice.
    """
    if needed > free:
        raise ValueError(
            f"{estimate}\n{folder} has {readable(free)} free, the cache needs {readable(needed)}: name a folder on "
            f"another disk, or {advice}"
        )


def decoded_ahead(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    collate: Callable[[list[Any]], Any],
    data: Any,
    fabric: Fabric,
    most: int,
) -> Iterator[Any]:
    """These batches of a data set, in order, decoded ahead by a run's workers.

    Args:
        dataset: clips by key.
        batches: of keys.
        collate: what becomes of a batch.
        data: the run's data module, with `workers` and `deadline`.
        fabric: where the batches will go.
        most: keys in a batch.
    """
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=data.workers,
        pin_memory=fabric.device.type == "cuda",
        worker_init_fn=serve_parent,
        # A batch takes at most the deadline for probing and reading each file; a dead worker must not hang us.
        timeout=(2 * data.deadline * most + 60) if data.workers else 0,
        generator=torch.Generator(),
    )
    return iter(loader)


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
