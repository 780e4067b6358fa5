"""Builds a target cache: the teacher runs once over every view of every video (docs/target_cache.md).

The unit of work is a shard. It is written under a temporary name and renamed when it is whole, so a shard that is there
is finished, and its own tables say all that the index will. Processes share nothing but the folder and, at the start,
the list of missing shards; a kill at any point loses the shards being made, and any number of processes can go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch

from liteframe.data.stream import FirstClips
from liteframe.data.video.errors import VideoError
from liteframe.distill.cache.builder import ENCODERS, CacheBuilder, LiveClips, collate, readable
from liteframe.distill.cache.codec import TargetCodec, clip_bytes
from liteframe.distill.cache.reader import INDEX, SETTINGS, STATISTICS, CacheIndex
from liteframe.distill.cache.settings import NAMES, CacheSettings, ShardKey, all_shards
from liteframe.distill.cache.shard import Shard, ShardInfo, StoredClip, pack_shard
from liteframe.distill.clips import Clip
from liteframe.distill.statistics import ChannelStatistics, RunningStatistics
from liteframe.files import file_digest, write_atomically
from liteframe.training.failures import FailureTally
from liteframe.training.report import duration

LOCK, BAD_VIDEOS = ".lock", "bad_videos.jsonl"
# Clips that the estimate measures, clips that it tries, and bytes of JSON, digests and headers of a clip, generously.
MEASURED, TRIED, OVERHEAD = 4, 32, 1024

Say = Callable[[str], None]
Advance = Callable[[str, int, int], None]


def build_cache(builder: CacheBuilder, folder: Path, *, say: Say, advance: Advance) -> None:
    """Build a cache, or go on with it.

    Every process of the fabric calls this.

    Args:
        builder: the run and its teacher.
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
                say(estimate(builder, missing, folder))
            stack.enter_context(sole_builder(folder))
            if missing or not all((folder / name).is_file() for name in (SETTINGS, STATISTICS, INDEX)):
                prepare(builder, folder, advance)
        missing = fabric.broadcast(missing)
        statistics = ChannelStatistics.from_bytes((folder / STATISTICS).read_bytes(), settings.dim)
        mine = missing[fabric.global_rank :: fabric.world_size]
        make_shards(builder, TargetCodec.of(settings, statistics), mine, folder, advance)
        fabric.barrier()
        if fabric.is_global_zero and not (folder / INDEX).is_file():
            write_index(folder, settings)


def check_folder(folder: Path, settings: CacheSettings) -> None:
    """Refuse a folder that this build must not touch.

    Raises:
        ValueError: it holds other files, or a cache with other settings; each difference is named.
    """
    if not (folder / SETTINGS).is_file():
        # A build that was killed at once has left a lock.
        begun = folder.is_dir() and all(path.name == LOCK or path.suffix == ".tmp" for path in folder.iterdir())
        if folder.exists() and not begun:
            raise ValueError(f"{folder} is not empty and holds no target cache; name another folder")
        return
    try:
        there = CacheSettings.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS}: {error}; delete {folder} or name another folder") from error
    differences = there.differences(settings, ignored=NAMES)
    if differences:
        raise ValueError(
            f"{folder} was begun with other settings: {'; '.join(differences)}. Give the build these values, or name "
            "another folder"
        )


def whole_shards(folder: Path, settings: CacheSettings) -> dict[ShardKey, ShardInfo]:
    """The finished shards of a folder, in their order; what is no shard of these settings is not among them."""
    infos = {}
    for key in all_shards(settings):
        with contextlib.suppress(ValueError, FileNotFoundError):
            infos[key] = Shard(folder / f"{key.name}.safetensors", key, settings).info
    return infos


def estimate(builder: CacheBuilder, missing: Sequence[ShardKey], folder: Path) -> str:
    """Size and time of these shards in words, from a few training clips that go through everything.

    Raises:
        ValueError: none of the first videos can be read, or the file system has too little space.
    """
    settings, processes, workers = builder.settings, builder.fabric.world_size, builder.data.workers
    frame_bytes, decoding, making = measure(builder)
    target_bytes = clip_bytes(settings.codec, settings.target_shape, settings.log_weights)
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
        f"clips of {frames} frames of {settings.size[0]}x{settings.size[1]}"
        f"{' pixels at most, in their own aspect ratio' if settings.resize == 'aspect' else ''}\n"
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


def measure(builder: CacheBuilder) -> tuple[int, float, float]:
    """Bytes of a clip's frames; seconds to decode a clip on one core; and seconds for the rest of its way."""
    dataset, clips, seconds, failure = LiveClips(builder.data), list[Clip](), list[float](), ""
    for index in range(min(TRIED, builder.settings.train_videos)):
        begin = time.perf_counter()
        item = dataset["train", (0, index)]
        if isinstance(item, VideoError):
            failure = str(item)
            continue
        clips.append(item)
        seconds.append(time.perf_counter() - begin)
        if len(clips) == min(MEASURED, builder.clips_at_once):
            break
    if not clips:
        raise ValueError(f"none of the first videos could be read, the last because: {failure}")
    plain = TargetCodec(builder.settings.codec, torch.zeros(builder.settings.dim), torch.ones(builder.settings.dim))
    with ThreadPoolExecutor(ENCODERS) as threads:
        for _ in range(2):  # the first time warms up
            begin = time.perf_counter()
            stored = builder.encode(collate(clips), plain, threads)
            making = (time.perf_counter() - begin) / len(clips)
    # A median, for the first clip has waited until the decoder had started.
    return sum(len(file) for clip in stored for file in clip.jpeg) // len(clips), median(seconds), making


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
            raise ValueError(f"another `liteframe cache build` is writing to {folder}; wait for it") from error
        yield


def prepare(builder: CacheBuilder, folder: Path, advance: Advance) -> None:
    """Settings and statistics, after the left-overs of killed builds are gone; until the end it is not a cache."""
    (folder / INDEX).unlink(missing_ok=True)
    for left_over in folder.glob(".*.tmp"):
        left_over.unlink(missing_ok=True)
    text = builder.settings.to_json()
    if not (folder / SETTINGS).is_file() or (folder / SETTINGS).read_text(encoding="utf-8") != text:
        write_atomically(folder / SETTINGS, text.encode())
    if not (folder / STATISTICS).is_file():
        write_atomically(folder / STATISTICS, measure_statistics(builder, advance).to_bytes())


def measure_statistics(builder: CacheBuilder, advance: Advance) -> ChannelStatistics:
    """Channel statistics on the clips that a run would measure them on."""
    settings = builder.settings
    running = RunningStatistics(settings.dim, builder.fabric.device, shared=False)
    stream = builder.data.stream(builder.clips_at_once, 1)
    total, done = settings.statistics_clips, 0
    for clips in builder.decode([("train", key) for key in batch] for batch in FirstClips(stream, total)):
        if clips.batch.paths:
            made = builder.measured(builder.make(clips.batch))
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


def make_shards(
    builder: CacheBuilder, codec: TargetCodec, keys: Sequence[ShardKey], folder: Path, advance: Advance
) -> None:
    """Make these shards, one after the other, while workers decode ahead."""
    decoded = builder.decode(batch for key in keys for batch in builder.batches_of(key))
    total, done = sum(key.count for key in keys), 0
    # Storage that went away must not fill a cache with failures.
    tally = FailureTally(
        folder / BAD_VIDEOS,
        builder.data.max_failure_rate,
        remedy=f"Run `liteframe scan {builder.data.videos} -o good.jsonl` and build from good.jsonl, or allow more "
        "with --data.max_failure_rate; finished shards stay.",
    )
    with ThreadPoolExecutor(ENCODERS) as threads:
        for key in keys:
            clips: list[StoredClip] = []
            while len(clips) < key.count:
                clips += builder.encode(next(decoded), codec, threads)
                advance("clips", done + len(clips), total)
            done += key.count
            bad = [dict(clip.facts["failure"]) for clip in clips if clip.failed]
            tally.record(len(clips) - len(bad), bad)
            tally.agree()
            write_atomically(folder / f"{key.name}.safetensors", pack_shard(clips, builder.settings))


def write_index(folder: Path, settings: CacheSettings) -> None:
    """The digests of everything, which makes the folder a cache.

    Raises:
        ValueError: a shard is missing, because another process has failed.
    """
    shards, count = whole_shards(folder, settings), len(all_shards(settings))
    if len(shards) < count:
        raise ValueError(f"{count - len(shards)} shards of {folder} are missing; run the same command again")
    files = {name: file_digest(folder / name) for name in (SETTINGS, STATISTICS)}
    index = CacheIndex(files, {key.name: info for key, info in shards.items()})
    write_atomically(folder / INDEX, index.to_json().encode())
