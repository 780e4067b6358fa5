"""Store a teacher's targets once, check them, describe them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from liteframe.distill.cache.settings import Codec
from liteframe.training.progress import PLAIN_SECONDS, duration


class CacheProgress:
    """Shows the first process's share of the work; the others stay silent.

    Args:
        rank: number of this process.
        processes: how many share the work.
    """

    def __init__(self, rank: int = 0, processes: int = 1):
        console = Console(stderr=True)
        self.rank, self.terminal = rank, console.is_terminal and rank == 0
        self.note = f" (1 of {processes} processes)" if processes > 1 else ""
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
        self._bar = Progress(
            TextColumn("{task.description}"), *columns, console=console, transient=True, disable=not self.terminal
        )
        self._tasks: dict[str, TaskID] = {}
        self._began = self._printed = 0.0

    def __enter__(self) -> CacheProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        """Print above the bar."""
        self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` things are done."""
        now = time.monotonic()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what + self.note, total=total)
            self._began = self._printed = now
        self._bar.update(self._tasks[what], completed=done)
        if self.rank or self.terminal or (now - self._printed < PLAIN_SECONDS and done < total):
            return
        self._printed = now
        left = (now - self._began) / max(1, done) * (total - done)
        print(f"{what} {done}/{total}{self.note}  ETA {duration(left)}", file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="run the teacher over all videos and store its targets",
        description="Runs the teacher of a CTD run over K views of each of its training videos and the middle clip of "
        "each held-out one. Killed or not, the same command goes on where it stopped. Under torchrun the processes "
        "share the work. Other options (--data.videos, --model.target.scope, ...) change the run's settings, as they "
        "do for train_ctd.py.",
    )
    build.add_argument("--config", required=True, metavar="YAML", help="configuration of the run that will train")
    build.add_argument("-o", "--output", required=True, metavar="CACHE", help="folder to build or to go on with")
    build.add_argument("--views", type=int, required=True, metavar="K", help="clips of each training video")
    build.add_argument(
        "--codec", choices=get_args(Codec), default="bf16", help="how targets are stored (default: %(default)s)"
    )
    build.add_argument("--frames", choices=["jpeg"], help="store the frames as well; training then reads no video")
    build.add_argument("--jpeg_quality", type=int, default=90, help="1 to 100 (default: %(default)s)")
    build.set_defaults(overrides=[])
    verify = actions.add_parser(
        "verify",
        help="check every digest, and a sample against the live teacher",
        description="Exit code 0 when every file is what was written, and a random sample of clips, decoded and "
        "given to the live teacher again, agrees with what is stored.",
    )
    verify.add_argument("cache", metavar="CACHE")
    verify.add_argument("--sample", type=int, default=16, metavar="N", help="clips (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    verify.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: %(default)s)")
    info = actions.add_parser("info", help="size, coverage, failures and settings")
    info.add_argument("cache", metavar="CACHE")


def run(args: argparse.Namespace) -> int:
    """Runs one action; 0 on success."""
    return {"build": _build, "verify": _verify, "info": _info}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    from liteframe.distill.cache.build import build_cache
    from liteframe.distill.cache.job import CacheJob, Storage, launch_fabric
    from liteframe.distill.command import CTDCommand
    from liteframe.training.command import load_run
    from liteframe.training.failures import TooManyBadVideosError

    run = load_run(CTDCommand, ["--config", args.config, *args.overrides])
    storage = Storage(args.views, args.codec, args.jpeg_quality if args.frames else None)
    fabric = launch_fabric(run.settings.trainer)
    folder = Path(args.output)
    with CacheProgress(fabric.global_rank, fabric.world_size) as progress:
        try:
            job = CacheJob(run, storage, fabric)
            build_cache(job, folder, say=progress.say, advance=progress.advance)
        except TooManyBadVideosError as error:
            print(f"liteframe cache: {error}", file=sys.stderr)
            return 1
    if fabric.is_global_zero:
        print(
            f"{folder} is finished; `liteframe cache info {folder}` describes it, --data.cache {folder} trains from it"
        )
    return 0


def _verify(args: argparse.Namespace) -> int:
    from liteframe.distill.cache import TargetCache
    from liteframe.distill.cache.verify import check_files, check_sample

    cache = TargetCache.open(args.cache)
    with CacheProgress() as progress:
        problems = check_files(cache, progress.advance)
        compared = []
        if args.sample:
            compared = check_sample(cache, args.sample, args.seed, args.accelerator, progress.advance)
    problems += [f"{one.place}: {one.problem}" for one in compared if one.problem is not None]
    print(f"{len(cache.index.entries)} shards read, {len(compared)} clips compared with {cache.settings.teacher}")
    if compared:
        print(
            f"largest difference: {max(one.largest for one in compared):.3g} times what {cache.settings.codec} may "
            f"change; beyond that at most {max(one.beyond for one in compared):.2g} standard deviations of a channel"
        )
    if any(one.psnr is not None for one in compared):
        print(f"stored frames: at least {min(one.psnr for one in compared if one.psnr is not None):.1f} dB PSNR")
    for problem in problems:
        print(problem, file=sys.stderr)
    if args.sample and not compared:
        print("no clip could be compared: all of them failed when the cache was built", file=sys.stderr)
        return 1
    return 1 if problems else 0


def _info(args: argparse.Namespace) -> int:
    from liteframe.distill.cache.verify import describe_cache

    print(describe_cache(Path(args.cache)))
    return 0
