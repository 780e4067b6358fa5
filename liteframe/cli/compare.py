"""Compare a Video LLM, reducers on it and a LiteFrame encoder: accuracy and time, at equal frames, tokens and time."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from liteframe.cli.eval import add_asking, add_benchmark, add_fit, add_mode, add_model, read_options, report_missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe compare`."""
    add_benchmark(parser)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run; one that exists is continued")
    add_model(parser)
    add_mode(parser, "; several with commas: liteframe is taken in each")
    parser.add_argument(
        "--systems",
        help="a list such as wap,fastvid@0.125,liteframe,liteframe+vidcom2@0.5: reducers by name, at --ratios or at "
        "the one behind @; none (the dense model) and blind (no video) are always there. Default: all reducers, and "
        "liteframe where --encoder is",
    )
    parser.add_argument("--frames", default="8,16,32", help="numbers of frames of each video (default 8,16,32)")
    parser.add_argument("--ratios", default="0.0625", help="shares of the tokens that reducers leave (default 0.0625)")
    add_fit(parser)
    parser.add_argument("--timing-runs", type=int, default=100, help="timed passes of each system (default 100)")
    add_asking(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, time, write; 1 where a system failed, which its row says."""
    from rich.console import Console

    from liteframe.compare.run import Comparison, compare
    from liteframe.compare.systems import parse_systems
    from liteframe.evaluate.asking import check_words
    from liteframe.evaluate.benchmarks import find_benchmark
    from liteframe.evaluate.benchmarks.records import check_questions
    from liteframe.evaluate.folder import check_folder
    from liteframe.evaluate.settings import asking_of, mode_for, watching_of
    from liteframe.evaluate.shares import this_rank
    from liteframe.models.vlm.modes import check_mode

    if args.timing_runs < 1:
        raise ValueError(f"--timing-runs {args.timing_runs}: at least one pass is timed")
    if args.adapter and not args.encoder:
        raise ValueError("--adapter was trained with a LiteFrame encoder: name it with --encoder")
    frames = sorted(_numbers("--frames", args.frames, int))
    ratios = _numbers("--ratios", args.ratios, float)
    names = None if args.systems is None else args.systems.split(",")
    modes = [] if args.mode is None else args.mode.split(",")
    for mode in modes:
        check_mode(mode, args.encoder)
    systems = parse_systems(names, ratios, student=args.encoder is not None, modes=modes)
    rank = this_rank()
    if rank.ranks == 1:  # of several, the first may be writing there already
        check_folder(args.run, "--run")
    benchmark, source = find_benchmark(args.benchmark, args.folder)
    dataset = benchmark.load(source)
    check_questions(dataset.questions, benchmark.layout)
    given = {**vars(args), "frames": frames[0]}
    given |= dict.fromkeys(("mode", "reducer", "ratio", "crops", "sampling", "labels", "config"))
    options = read_options(argparse.Namespace(**given))
    asking = asking_of(benchmark, dataset, options)
    watching_of(benchmark, options)  # only a stream can be polled
    check_words(benchmark, dataset.questions, asking)
    console = Console(quiet=rank.number > 0)
    report_missing(console, dataset.questions)
    found = {
        (system.mode, count): mode_for(system.mode, options, replace(asking, frames=count), benchmark, dataset)
        for system in systems
        for count in frames
    }
    comparison = Comparison(benchmark, dataset, asking, systems, frames, options, args.timing_runs, found)
    points = compare(comparison, args.run, console)
    if rank.number:
        return 0
    console.print((args.run / "results.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    return int(any(point.failed for point in points))


def _numbers(option: str, text: str, kind: type) -> list:
    """Different positive numbers, separated by commas."""
    try:
        numbers = [kind(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: write numbers with commas between them") from None
    if min(numbers) <= 0 or len(set(numbers)) < len(numbers):
        raise ValueError(f"{option} {text}: numbers above 0, each once")
    return numbers
