"""Builds a target cache: the teacher runs once over every view of every video (docs/target_cache.md).

The unit of work is a part: the clips of one shard. A shard is written under a temporary name, renamed when it is whole,
and only then named in parts/. Processes share nothing but the folder and, at the start, the list of missing parts; a
kill at any point loses the parts being made, and any number of processes can go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from liteframe.data.cache.codec import TargetCodec
from liteframe.data.cache.jpeg import encode_jpeg
from liteframe.data.cache.layout import BAD_VIDEOS, INDEX, PARTS, SETTINGS, STATISTICS, Part, all_parts
from liteframe.data.cache.shard import Record
from liteframe.data.cache.statistics import TargetStatistics
from liteframe.data.failures import FailureTally
from liteframe.distill.cache_estimate import describe, measure
from liteframe.distill.cache_folder import check_folder, finished_entry, sole_builder, write_index, write_part
from liteframe.distill.cache_job import CacheJob, ClipFacts, PartBatches
from liteframe.distill.statistics import FeatureStatistics
from liteframe.training.run_folder import write_atomically

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
