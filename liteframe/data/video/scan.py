"""Looks at every video before a run: which can be read, by which reader, and what is wrong with the others."""

from __future__ import annotations

import math
import os
import queue
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.data.manifest import VideoEntry, entry_of_row, row_of_entry
from liteframe.data.video import reader_decord
from liteframe.data.video.errors import VideoError, VideoInfo
from liteframe.data.video.process import DecodeProcess
from liteframe.journal import Journal

# Sequential decoding is compared on this many first frames: all of a clip, twenty seconds of a film.
COMPARED_FRAMES = 600
_COMPARED_PIXELS = 1920 * 1088  # larger frames are compared scaled down
_DECORD_SECONDS = 10.0  # decord hangs on some files; one where it is slower than this gains nothing
# Mean difference in levels of 255: readers of different FFmpegs round differently, more is another frame.
_TOLERANCE = 3.0
FORMAT = 3  # of the journal


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What became of one entry: `entry` completed with facts and reader, or `error`."""

    entry: VideoEntry
    error: VideoError | None = None


def scan(
    entries: Sequence[VideoEntry],
    *,
    workers: int = 2,
    deadline: float = 60.0,
    samples: int = 4,
    done: Callable[[ScanResult], None] = lambda result: None,
) -> list[ScanResult]:
    """Checks all entries, each in a process that is killed at the deadline.

    Args:
        entries: what to look at.
        workers: how many at a time.
        deadline: seconds that one file may take.
        samples: random frames that are compared, besides the first and the last.
        done: called after each file, from this thread.

    Returns:
        One result an entry, in the order given.
    """
    if workers < 1 or samples < 0 or not deadline > 0:
        raise ValueError(f"workers {workers}, samples {samples}, deadline {deadline}: from 1, from 0 and above 0")
    results: list[Any] = [None] * len(entries)
    # decord gets processes of its own: one that it hangs in takes nothing with it
    idle = queue.SimpleQueue[tuple[DecodeProcess, DecodeProcess]]()
    pairs = [(DecodeProcess(deadline), DecodeProcess(min(_DECORD_SECONDS, deadline))) for _ in range(workers)]
    for pair in pairs:
        idle.put(pair)

    def check(entry: VideoEntry) -> ScanResult:
        pair = idle.get()
        try:
            return ScanResult(_Check(*pair, entry, deadline, samples).run())
        except VideoError as error:
            return ScanResult(entry, error)
        finally:
            idle.put(pair)

    pool = ThreadPoolExecutor(workers)
    try:
        todo, running = iter(enumerate(entries)), dict[Future[ScanResult], int]()
        # a few more than there are workers: of a million jobs the list alone would fill the memory
        while True:
            running.update((pool.submit(check, e), n) for n, e in islice(todo, 2 * workers - len(running)))
            if not running:
                break
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                results[running.pop(job)] = result = job.result()
                done(result)
    finally:
        processes = [process for pair in pairs for process in pair]
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.interrupt()  # after Ctrl-C a call may still be under way
        pool.shutdown()
        for process in processes:
            process.close()
    return results


class ScanJournal:
    """What became of each entry, kept as it is known, so that a scan that was killed is gone on with.

    Args:
        path: of the journal; one that exists is gone on with.
        settings: that the outcome depends on.

    Raises:
        ValueError: it was begun with other settings, another scan writes to it, or it holds something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self._journal = path, Journal(path)
        self.results: dict[tuple[Any, ...], ScanResult] = {}
        settings, begun = {"format": FORMAT, **settings}, False
        try:
            for where, row in self._journal.rows(f"remove {path} to scan anew"):
                if begun:
                    self._recall(row, where)
                elif row != settings:
                    raise ValueError(
                        f"{path} is of a scan that was not finished, with {row}, and this one has {settings}: give the "
                        "same options to go on, or remove the file to scan anew"
                    )
                begun = True
        except BaseException:
            self._journal.close()
            raise
        if not begun:
            self._journal.append(settings)

    def recall(self, entry: VideoEntry) -> ScanResult | None:
        """What became of an entry, if the file is as it was."""
        return self.results.get(_key(entry))

    def keep(self, result: ScanResult) -> None:
        """Write what became of an entry."""
        error = None if result.error is None else result.error.to_dict()
        self._journal.append({"entry": row_of_entry(result.entry), "error": error, "file": _file(result.entry.video)})

    def close(self, *, finished: bool = False) -> None:
        """End writing; a journal whose scan is finished goes."""
        if finished:
            self.path.unlink()
        self._journal.close()

    def _recall(self, row: Any, where: str) -> None:
        try:
            entry = entry_of_row(row["entry"], row["entry"]["video"], where)
            error = None if row["error"] is None else VideoError(**row["error"])
            same = row["file"] == _file(entry.video)
        except (KeyError, TypeError, ValueError) as problem:
            raise ValueError(f"{where}: no row of a scan ({problem}); remove the line") from problem
        self.results.pop(_key(entry), None)
        if same:
            self.results[_key(entry)] = ScanResult(entry, error)


def _key(entry: VideoEntry) -> tuple[Any, ...]:
    return entry.video, entry.start, entry.end


def _file(path: str) -> list[int] | None:
    """What changes when a file does: size, and time of the last change in nanoseconds."""
    with suppress(OSError):
        status = os.stat(path)
        return [status.st_size, status.st_mtime_ns]
    return None


class _Check:
    """The steps for one file."""

    def __init__(
        self, process: DecodeProcess, decord_process: DecodeProcess, entry: VideoEntry, deadline: float, samples: int
    ):
        self.process, self.decord_process = process, decord_process
        self.entry, self.samples, self.deadline = entry, samples, deadline
        self.until = time.monotonic() + deadline

    def run(self) -> VideoEntry:
        path, self.process.deadline = self.entry.video, self.deadline
        info = self.process.probe(path)
        try:
            info.timeline.span(self.entry.start, self.entry.end)
        except ValueError as error:
            raise VideoError(path, "index", str(error), "correct start and end in the manifest") from error
        wanted = self._choose(info)
        size = _comparison_size(info)
        frames = self._random_access(wanted, size)
        early = [i for i in wanted if i < COMPARED_FRAMES or info.anchors == 0]
        truth = self._read(early, reader="pyav-sequential", size=size)
        for index, frame in zip(early, truth, strict=True):
            if not np.array_equal(frame, frames[index]):
                raise VideoError(path, "corrupt", f"frame {index} differs between sequential and random access")
        reader = "decord" if self._decord_is_exact(info, wanted, frames, size) else "pyav"
        facts = self.entry.with_facts(info)
        return replace(facts, duration=round(info.duration, 6), fps=round(info.fps, 6), reader=reader)

    def _choose(self, info: VideoInfo) -> list[int]:
        """First, last and random frames, each with its neighbours: a reader that is one off must show."""
        draw = random.Random(os.fsencode(f"{info.frames} {self.entry.video}"))  # a name need not be UTF-8
        head = min(info.frames, COMPARED_FRAMES)
        centers = {0, info.frames - 1, *(draw.randrange(head) for _ in range(self.samples))}
        centers |= {draw.randrange(info.frames) for _ in range(self.samples)} if info.frames > head else set()
        return sorted({i for c in centers for i in (c - 1, c, c + 1) if 0 <= i < info.frames})

    def _read(self, indices: Sequence[int], **options: object) -> np.ndarray:
        self.process.deadline = self.until - time.monotonic()
        if self.process.deadline <= 0:
            raise VideoError(self.entry.video, "deadline", f"was not checked within {self.deadline:g} s")
        return self.process.read(self.entry.video, indices, **options)  # type: ignore[arg-type]

    def _random_access(self, wanted: list[int], size: tuple[int, int] | None) -> dict[int, np.ndarray]:
        """Each frame by a call of its own, in random order."""
        order = random.Random(0).sample(wanted, len(wanted))
        return {index: self._read([index], size=size)[0] for index in order}

    def _decord_is_exact(
        self, info: VideoInfo, wanted: list[int], frames: dict[int, np.ndarray], size: tuple[int, int] | None
    ) -> bool:
        """Whether decord sees the same number of frames and the same pictures, in two orders.

        It chooses among several video streams by rules of its own, so it is given files with one only, and knows
        nothing of pixels that are not square.
        """
        told_alone = info.closed_groups and info.video_tracks == 1 and info.square_pixels
        if not (told_alone and reader_decord.available()):
            return False
        try:
            for order in (wanted, random.Random(1).sample(wanted, len(wanted))):
                seen = self.decord_process.read(self.entry.video, order, reader="decord", size=size)
                if not all(_is_picture(image, index, frames) for index, image in zip(order, seen, strict=True)):
                    return False
        except VideoError:
            return False
        try:
            self.decord_process.read(self.entry.video, [info.frames], reader="decord")
        except VideoError as error:
            return error.kind == "index"  # it must not see a frame more
        return False


def _comparison_size(info: VideoInfo) -> tuple[int, int] | None:
    scale = math.sqrt(_COMPARED_PIXELS / (info.width * info.height))
    return None if scale >= 1 else (max(1, int(info.height * scale)), max(1, int(info.width * scale)))


def _is_picture(image: np.ndarray, index: int, frames: dict[int, np.ndarray]) -> bool:
    """Whether `image` is frame `index`: close to it, and no further from it than from its neighbours."""
    if image.shape != frames[index].shape:
        return False
    distances = {i: _distance(image, frames[i]) for i in (index - 1, index, index + 1) if i in frames}
    return distances[index] <= _TOLERANCE and distances[index] <= min(distances.values())


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())
