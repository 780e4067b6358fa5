"""Builds a target cache: the teacher runs once over every view of every video (docs/target_cache.md).

The unit of work is a part: the clips of one shard. A shard is written under a temporary name, renamed when it is whole,
and only then named in parts/. Processes share nothing but the folder and, at the start, the list of missing parts; a
kill at any point loses the parts being made, and any number of processes can go on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from liteframe.distill.cache.codec import TargetCodec, encode_jpeg
from liteframe.distill.cache.estimate import describe, measure
from liteframe.distill.cache.job import CacheJob, ClipFacts, PartBatches
from liteframe.distill.cache.layout import (
    BAD_VIDEOS,
    INDEX,
    PARTS,
    SETTINGS,
    STATISTICS,
    Entry,
    Index,
    Part,
    all_parts,
    sha256,
)
from liteframe.distill.cache.settings import NAMES, CacheSettings
from liteframe.distill.cache.shard import Record, pack_shard
from liteframe.distill.statistics import FeatureStatistics, TargetStatistics
from liteframe.files import write_atomically
from liteframe.training.failures import FailureTally

LOCK = ".lock"


def check_folder(folder: Path, settings: CacheSettings) -> None:
    """Refuse a folder that this build must not touch.

    Raises:
        ValueError: it holds other files, or a cache with other settings; each difference is named.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / SETTINGS).is_file() and not (folder / LOCK).is_file():
        raise ValueError(f"{folder} is not empty and holds no target cache; name another folder")
    if not (folder / SETTINGS).is_file():
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


def finished_entry(folder: Path, part: Part) -> Entry | None:
    """The entry of a part whose shard is whole, else None."""
    try:
        entry = Entry.parse(json.loads((folder / PARTS / f"{part.name}.json").read_text()), part)
        size = (folder / f"{part.name}.safetensors").stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    return entry if entry.bytes == size else None


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


def write_part(folder: Path, part: Part, records: Sequence[Record], settings: CacheSettings) -> None:
    """The shard, then the note that it is whole."""
    data, tables = pack_shard(records, settings)
    write_atomically(folder / f"{part.name}.safetensors", data)
    entry = Entry(part.count, sum(record.failed for record in records), len(data), sha256(data), tables)
    write_atomically(folder / PARTS / f"{part.name}.json", entry.to_json().encode())


def write_index(folder: Path, settings: CacheSettings) -> None:
    """The digests of everything, which makes the folder a cache.

    Raises:
        ValueError: a part is missing, because another process has failed.
    """
    entries = {part.name: finished_entry(folder, part) for part in all_parts(settings)}
    whole = {name: entry for name, entry in entries.items() if entry is not None}
    if len(whole) < len(entries):
        raise ValueError(f"{len(entries) - len(whole)} shards of {folder} are missing; run the same command again")
    files = {name: sha256((folder / name).read_bytes()) for name in (SETTINGS, STATISTICS)}
    write_atomically(folder / INDEX, Index(files, whole).to_json().encode())


Say = Callable[[str], None]
Advance = Callable[[str, int, int], None]
ENCODERS = 4


def build_cache(job: CacheJob, folder: Path, *, say: Say, advance: Advance) -> None:
    """Build a cache, or go on with it.

    Every process of the fabric calls this.

    Args:
        job: the run and its teacher.
        folder: of the cache; made if it is missing.
        say: prints a message, called on the first process.
        advance: called on every process with what is being made, and the clips done and to do by this process.

    Raises:
        ValueError: the folder holds something else or a cache with other settings, or the disk is too small.
        TooManyBadVideosError: more clips fail than `data.max_failure_rate` allows.
        OSError: a file cannot be written; what was finished stays, and the same command goes on.
    """
    fabric = job.fabric
    with contextlib.ExitStack() as stack:
        missing: list[Part] = []
        if fabric.is_global_zero:
            check_folder(folder, job.settings)
            missing = [part for part in all_parts(job.settings) if finished_entry(folder, part) is None]
            if missing:
                say(describe(job, measure(job), missing, folder))
            stack.enter_context(sole_builder(folder))
            if missing:
                # Until all of it is there again, it is not a cache.
                (folder / INDEX).unlink(missing_ok=True)
            prepare(job, folder, advance)
        missing = fabric.broadcast(missing)
        statistics = TargetStatistics.from_bytes((folder / STATISTICS).read_bytes(), job.settings.dim)
        mine = missing[fabric.global_rank :: fabric.world_size]
        make_parts(job, TargetCodec.of(job.settings, statistics), mine, folder, advance)
        fabric.barrier()
        if fabric.is_global_zero:
            write_index(folder, job.settings)


def prepare(job: CacheJob, folder: Path, advance: Advance) -> None:
    """Settings and statistics, after the left-overs of killed builds are gone."""
    for left_over in [*folder.glob(".*.tmp"), *(folder / PARTS).glob(".*.tmp")]:
        left_over.unlink(missing_ok=True)
    write_atomically(folder / SETTINGS, job.settings.to_json().encode())
    if not (folder / STATISTICS).is_file():
        write_atomically(folder / STATISTICS, measure_statistics(job, advance).to_bytes())


def measure_statistics(job: CacheJob, advance: Advance) -> TargetStatistics:
    """Channel statistics on the clips that a run would measure them on."""
    running = FeatureStatistics(job.settings.dim, job.fabric.device, full=True, shared=False)
    batches, done = job.statistics_keys(), 0
    total = sum(len(batch) for batch in batches)
    for batch, facts in job.decode(batches):
        if batch.paths:
            made = job.make(batch)
            running.update(made.pooled[made.slots].flatten(0, -2))
        done += len(facts)
        advance("statistics", done, total)
    if running.count < 2 or not torch.isfinite(running.mean).all():
        raise ValueError(
            f"the statistics of {total} clips are unusable ({running.count} tokens): check the videos with "
            "`liteframe scan`, and the teacher's weights"
        )
    return TargetStatistics.taken_from(running)


def make_parts(job: CacheJob, codec: TargetCodec, parts: Sequence[Part], folder: Path, advance: Advance) -> None:
    """Make the shards of these parts, one after the other, while workers decode ahead."""
    stream = job.decode(PartBatches(job, parts))
    total, done = sum(part.count for part in parts), 0
    # Storage that went away must not fill a cache with failures.
    tally = FailureTally(
        folder / BAD_VIDEOS,
        job.data.max_failure_rate,
        remedy=f"Run `liteframe scan {job.data.videos} -o good.jsonl` and build from good.jsonl, or allow more with "
        "--data.max_failure_rate; finished shards stay.",
    )
    with ThreadPoolExecutor(ENCODERS) as pool:
        for part in parts:
            records: list[Record] = []
            for _ in job.batches_of(part):
                records += make_records(job, codec, next(stream), pool)
                advance("clips", done + len(records), total)
            done += part.count
            bad = [dict(record.facts["failure"]) for record in records if record.failed]
            tally.record(len(records) - len(bad), bad)
            tally.agree()
            write_part(folder, part, records, job.settings)


def make_records(job: CacheJob, codec: TargetCodec, clips: ClipFacts, pool: ThreadPoolExecutor) -> list[Record]:
    """What is stored of a batch, in the order of its keys."""
    if not clips.batch.paths:
        return [Record(facts, {}) for facts in clips.facts]
    made = job.make(clips.batch)
    images: list[list[bytes]] = [[] for _ in clips.batch.paths]
    if (quality := job.settings.jpeg_quality) is not None:
        frames = made.frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        images = [list(pool.map(lambda frame: encode_jpeg(frame, quality), clip)) for clip in frames]
    good = iter(zip(made.pooled, images, strict=True))
    records = []
    for facts in clips.facts:
        if "failure" in facts:
            records.append(Record(facts, {}))
            continue
        pooled, files = next(good)
        encoded = {name: tensor.cpu() for name, tensor in codec.encode(pooled).items()}
        records.append(Record(facts, encoded, files))
    return records
