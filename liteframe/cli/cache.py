"""Store a teacher's targets or an encoder's tokens once, check them, describe them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from liteframe.align.tokens.settings import Codec as TokenCodec
from liteframe.distill.cache.settings import Codec
from liteframe.training.report import PLAIN_SECONDS, duration


class CacheProgress(Progress):
    """Rich's bar on a terminal, a line now and then in a log file: the first process's share; the others are silent.

    Args:
        rank: number of this process.
        processes: how many share the work.
    """

    def __init__(self, rank: int = 0, processes: int = 1):
        console = Console(stderr=True)
        self.note = f" (1 of {processes} processes)" if processes > 1 else ""
        self.plain = rank == 0 and not console.is_terminal
        self.printed = 0.0
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "ETA")
        super().__init__(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=rank > 0 or self.plain,
            speed_estimate_period=600,  # seconds; a batch of clips may take a minute
        )

    def say(self, message: str) -> None:
        """Print a message that stays, above the progress bar."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` things are done."""
        now = time.monotonic()
        if not self.tasks or self.tasks[-1].description != what + self.note:
            self.add_task(what + self.note, total=total)
            self.printed = now
        task = self.tasks[-1]
        self.update(task.id, completed=done)
        if self.plain and (now - self.printed >= PLAIN_SECONDS or done == total):
            self.printed = now
            left = "?" if task.time_remaining is None else duration(task.time_remaining)
            print(f"{task.description} {done}/{total}  ETA {left}", file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe cache`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="run the teacher over all videos and store its targets",
        description="Runs the teacher of a CTD run over K views of each of its training videos and the middle clip of "
        "each held-out one. Killed or not, the same command goes on where it stopped. Under torchrun the processes "
        "share the work. Other options (--data.videos, --model.target.scope, ...) change the run's settings, as they "
        "do for train_ctd.py.",
    )
    build.add_argument("--config", required=True, metavar="NAME|FILE", help="configuration of the run that will train")
    build.add_argument("-o", "--output", required=True, metavar="CACHE", help="folder to build or to go on with")
    build.add_argument("--views", type=int, required=True, metavar="K", help="clips of each training video")
    build.add_argument(
        "--codec", choices=get_args(Codec), default="bf16", help="how targets are stored (default: %(default)s)"
    )
    build.add_argument("--frames", choices=["jpeg"], help="store the frames as well; training then reads no video")
    build.add_argument("--jpeg_quality", type=int, default=90, help="1 to 100 (default: %(default)s)")
    build.set_defaults(overrides=[])
    tokens = actions.add_parser(
        "tokens",
        help="run the encoder over all videos of conversations and store its tokens",
        description="Runs the frozen encoder of an LMA or TPO run over what it will show of its videos and images in "
        "its first K epochs. Killed or not, the same command goes on where it stopped. Under torchrun the processes "
        "share the work. Other options (--data.conversations, --data.frames, ...) change the run's settings.",
    )
    tokens.add_argument("--config", required=True, metavar="NAME|FILE", help="configuration of the run that will train")
    tokens.add_argument("-o", "--output", required=True, metavar="CACHE", help="folder to build or to go on with")
    tokens.add_argument("--views", type=int, required=True, metavar="K", help="draws of each video, one an epoch")
    tokens.add_argument(
        "--codec", choices=get_args(TokenCodec), help="how tokens are stored (default: what loses nothing)"
    )
    tokens.set_defaults(overrides=[])
    verify = actions.add_parser(
        "verify",
        help="check every digest, and a sample against the live teacher or encoder",
        description="Exit code 0 when every file is what was written, and a random sample of clips, decoded and "
        "given to the live teacher or encoder again, agrees with what is stored.",
    )
    verify.add_argument("cache", metavar="CACHE")
    verify.add_argument("--sample", type=int, default=16, metavar="N", help="clips (default: %(default)s)")
    verify.add_argument("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    verify.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: %(default)s)")
    info = actions.add_parser("info", help="size, coverage, failures and settings")
    info.add_argument("cache", metavar="CACHE")


def run(args: argparse.Namespace) -> int:
    """Runs one action; 0 on success."""
    return {"build": _targets, "tokens": _tokens, "verify": _verify, "info": _info}[args.action](args)


def _targets(args: argparse.Namespace) -> int:
    from liteframe.distill.cache.builder import CacheOptions, builder_of_run
    from liteframe.distill.command import CTDCommand

    def builder(run: Any, fabric: Any) -> Any:
        options = CacheOptions(args.views, args.codec, args.jpeg_quality if args.frames else None)
        return builder_of_run(run, options, fabric)

    return _build(args, CTDCommand, builder, "--data.cache")


def _tokens(args: argparse.Namespace) -> int:
    from liteframe.align.command import LMACommand, PreferCommand
    from liteframe.align.tokens.builder import TokenOptions, builder_of_run
    from liteframe.training.configs import config_file, run_kind

    def builder(run: Any, fabric: Any) -> Any:
        return builder_of_run(run, TokenOptions(args.views, args.codec), fabric)

    # A name without its kind is one of LMA.
    config = config_file(args.config, "prefer" if args.config.startswith("prefer/") else "lma")
    command = PreferCommand if run_kind(config) == "prefer" else LMACommand
    args.config = str(config)
    return _build(args, command, builder, "--data.tokens")


def _build(args: argparse.Namespace, command: Any, builder: Any, option: str) -> int:
    """Build what `builder` makes of the run that these arguments describe; `option` trains from it."""
    from liteframe.files import check_output
    from liteframe.training.cache.build import build_cache, launch_fabric
    from liteframe.training.command import load_run
    from liteframe.training.failures import TooManyBadVideosError

    check_output(args.output, folder=True)
    run = load_run(command, ["--config", args.config, *args.overrides])
    fabric = launch_fabric(run.settings.trainer)
    folder = Path(args.output)
    with CacheProgress(fabric.global_rank, fabric.world_size) as progress:
        try:
            build_cache(builder(run, fabric), folder, say=progress.say, advance=progress.show)
        except TooManyBadVideosError as error:
            print(f"liteframe cache: {error}", file=sys.stderr)
            return 1
    if fabric.is_global_zero:
        print(f"{folder} is finished; `liteframe cache info {folder}` describes it, {option} {folder} trains from it")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from liteframe.align.tokens import verify as of_tokens
    from liteframe.align.tokens.cache import TokenCache
    from liteframe.distill.cache import TargetCache
    from liteframe.distill.cache import verify as of_targets
    from liteframe.training.cache.verify import check_files

    kind: Any = TargetCache if _settings_class(args.cache).holds == "targets" else TokenCache
    verify: Any = of_targets if kind is TargetCache else of_tokens
    cache = kind.open(args.cache)
    with CacheProgress() as progress:
        problems = check_files(cache, progress.show)
        sample = (args.sample, args.seed, args.accelerator, progress.show)
        checks = verify.check_sample(cache, *sample) if args.sample else []
    problems += [f"{check.place}: {check.problem}" for check in checks if check.problem is not None]
    network = getattr(cache.settings, cache.settings.names[0 if kind is TargetCache else 1])
    print(f"{len(cache.index.shards)} shards read, {len(checks)} clips compared with {network}")
    if checks:
        print(
            f"largest difference: {max(check.error for check in checks):.2g} standard deviations of a channel; "
            f"{verify.tolerance(cache.settings):.2g} are allowed for {cache.settings.codec} and "
            f"{cache.settings.precision}"
        )
    if frames := [check.psnr for check in checks if check.psnr is not None]:
        print(f"stored frames: at least {min(frames):.1f} dB PSNR")
    for problem in problems:
        print(problem, file=sys.stderr)
    if args.sample and not checks:
        print("no clip could be compared: all of them failed when the cache was built", file=sys.stderr)
        return 1
    return 1 if problems else 0


def _info(args: argparse.Namespace) -> int:
    from liteframe.training.cache.verify import describe_cache

    print(describe_cache(Path(args.cache), _settings_class(args.cache)))
    return 0


def _settings_class(folder: str) -> Any:
    """Which kind of cache a folder holds.

    Raises:
        ValueError: it holds none.
    """
    from liteframe.align.tokens.settings import TokenSettings
    from liteframe.distill.cache.settings import CacheSettings
    from liteframe.training.cache.reader import read_settings

    kinds = (CacheSettings, TokenSettings)
    try:
        values = read_settings(folder)
    except FileNotFoundError as error:
        commands = " or ".join(f"`{kind.build}`" for kind in kinds)
        raise ValueError(f"{folder} is not a cache; make one with {commands}") from error
    return next((kind for kind in kinds if kind.mark in values), CacheSettings)
