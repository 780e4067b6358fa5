"""Put a benchmark's questions to a Video LLM, keep every answer, and report accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

# Values of options that neither the command line nor --config gives.
DEFAULTS = {"fit": False, "subtitles": False, "seed": 0, "deadline": 300.0}
FRAMES = 32
MODEL = ("vlm", "encoder", "adapter", "mode", "reducer", "ratio", "fit", "positions", "crops", "device", "dtype")
STREAM = ("online", "memory", "labels", "restart")
OPTIONS = (*MODEL, *STREAM, "frames", "sampling", "fps", "prompt", "prompts", "max_new_tokens", *DEFAULTS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe eval`."""
    add_benchmark(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run; one that exists is continued")
    parser.add_argument("--config", type=Path, help="YAML file with values for the options below; these win over it")
    add_model(parser)
    add_mode(parser)
    add_reduction(parser)
    parser.add_argument("--frames", type=int, help="frames of each video, spread evenly (default 32)")
    add_sampling(parser)
    add_asking(parser)
    add_stream(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Which frames, and what is written before them, for `liteframe ask` too."""
    parser.add_argument(
        "--sampling",
        choices=("even", "clips"),
        help="frames spread evenly (default), or clips of 4 frames at --fps (then 2 by default), as many as --frames "
        "allows, with gaps between them where a video is longer",
    )
    parser.add_argument("--labels", help="before each slot: frames (default), seconds or none")


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    """Which questions, for `liteframe compare` too."""
    parser.add_argument(
        "benchmark",
        help="video-mme, mlvu, longvideobench, hlvid, ovo-bench, streamingbench, streamingbench-all, "
        "streamingbench-proactive, ovbench, multiple-choice or free-form, with its folder (or JSONL file); or a JSONL "
        "file of questions alone",
    )
    parser.add_argument("folder", nargs="?", help="local copy of the benchmark, in its published layout")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Of whom they are asked."""
    parser.add_argument("--vlm", help="folder or id of a Video LLM, exported by LiteFrame or not")
    parser.add_argument("--encoder", help="folder of a LiteFrame encoder to put in place of the VLM's vision tower")
    parser.add_argument("--adapter", help="folder of a LoRA adapter (PEFT) to merge into the language model")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the checkpoint's")


def add_mode(parser: argparse.ArgumentParser, more: str = "") -> None:
    """The compression of an elastic encoder, for `liteframe ask` and `liteframe compare` too."""
    parser.add_argument(
        "--mode",
        help="compression of an elastic encoder, such as 32x; auto: the finest that fits what the language model "
        f"reads, auto:4096: and so many tokens of a video{more}",
    )


def add_reduction(parser: argparse.ArgumentParser) -> None:
    """The options of a reducer."""
    parser.add_argument("--reducer", help="way to fewer tokens of a video: wap, fastvid, ...; a wrong one lists all")
    parser.add_argument("--ratio", type=float, help="share of the tokens that --reducer leaves, such as 0.0625")
    add_fit(parser)
    parser.add_argument(
        "--crops",
        help="MOST[:VIEWS[:TOTAL]]: frames of high resolution in at most MOST crops beside the whole frame, room for "
        "the tokens of VIEWS views a slot (default 9), and for TOTAL tokens a video (default: any number), such as 4, "
        "16:9 or 16:9:4096; needs a LiteFrame encoder",
    )


def add_fit(parser: argparse.ArgumentParser) -> None:
    """How what reducers leave is counted and placed, for `liteframe compare` too."""
    parser.add_argument(
        "--fit", action="store_true", default=None,
        help="call a reducer whose count depends on the video again with other budgets, until it leaves 99 to 100 %% "
        "of --ratio",
    )  # fmt: skip
    parser.add_argument(
        "--positions",
        choices=("packed", "original"),
        help="of what a reducer leaves: consecutive (default), or where the tokens stood among all, with gaps",
    )


def add_asking(parser: argparse.ArgumentParser) -> None:
    """How they are asked."""
    parser.add_argument("--fps", type=float, help="frames a second, as many as --frames allows; default: any rate")
    parser.add_argument("--subtitles", action="store_true", default=None, help="show the subtitles of the frames")
    parser.add_argument(
        "--prompt",
        help="what is asked, with places {question}, {options}, {subtitles}; default: the benchmark's. Scores shift by "
        "a point or two with the wording: compare under one prompt",
    )
    parser.add_argument("--max-new-tokens", type=int, help="longest answer in tokens; default: the benchmark's")
    parser.add_argument("--seed", type=int, help="of the guesses that LongVideoBench's rule makes (default 0)")
    parser.add_argument("--deadline", type=float, help="seconds that one reading of frames may take (default 300)")


def add_stream(parser: argparse.ArgumentParser) -> None:
    """How they are asked while videos run."""
    parser.add_argument(
        "--online", action="store_true", default=None,
        help="watch each video as a stream and ask each question at its second; --fps says how many frames a second "
        "are looked at (default 1)",
    )  # fmt: skip
    parser.add_argument("--memory", help="with --online: NAME:BUDGET in tokens, such as window:4096, or all (default)")
    parser.add_argument(
        "--restart", action="store_true", default=None,
        help="with --online: a session of its own for each question; the same replies, but later",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Load, ask what has no reply yet, score, print and write."""
    from functools import partial

    from rich.console import Console

    from liteframe.answer.reduced_encoder import check_reduction
    from liteframe.evaluate.asking import check_words, span_of
    from liteframe.evaluate.benchmarks import find_benchmark
    from liteframe.evaluate.benchmarks.records import check_questions
    from liteframe.evaluate.folder import EvalFolder, answer_row, check_folder, score_report, score_table, taker
    from liteframe.evaluate.online import replies, session_of
    from liteframe.evaluate.settings import asking_of, determining, load_system, mode_for, watching_of
    from liteframe.evaluate.shares import Shares, this_rank
    from liteframe.files import write_json
    from liteframe.models.vlm.modes import check_mode
    from liteframe.training.report import environment

    options = read_options(args)
    check_reduction(options["reducer"], options["ratio"], options["fit"], options["positions"], options["crops"])
    check_mode(options["mode"], options["encoder"])
    rank = this_rank()
    console = Console(quiet=rank.number > 0)
    if rank.ranks == 1:  # of several, the first may be writing there already
        check_folder(args.out)
    benchmark, source = find_benchmark(args.benchmark, args.folder)
    dataset = benchmark.load(source)
    check_questions(dataset.questions, benchmark.layout)
    asking, watching = asking_of(benchmark, dataset, options), watching_of(benchmark, options)
    check_words(benchmark, dataset.questions, asking)
    report_missing(console, dataset.questions)
    options["mode"] = mode_for(options["mode"], options, asking, benchmark, dataset)
    system = load_system(options)
    settings = determining(benchmark, dataset, asking, options, system.model, watching)
    if watching is not None:
        watching.session(system)  # its budget may be below one slot of this model
    session = {
        **environment(system.model.device),
        "folder": str(source),
        **{k: options[k] for k in ("vlm", "encoder", "adapter", "deadline")},
    }
    with Shares(args.out, rank) as shares, EvalFolder(args.out, settings, session, rank.number) as folder:
        shares.begin()
        todo = folder.todo(dataset.questions)
        if len(todo) < len(dataset.questions):
            console.print(f"continuing: {len(dataset.questions) - len(todo)} questions already have a reply")
        key = span_of if watching is None else partial(session_of, restart=watching.restart)
        take = taker(shares, {"": folder}, dataset.questions, key=key)
        while todo:
            with progress(console) as bar:
                task = bar.add_task("questions", total=len(todo))
                for reply in replies(system, benchmark, todo, asking, watching, take):
                    folder.append(answer_row(benchmark, reply, options["seed"]))
                    bar.advance(task)
                folder.sync()
            if rank.number:
                return 0
            shares.wait_for_all()
            folder.refresh()
            todo = folder.todo(dataset.questions)  # of processes that died
        report = score_report(benchmark, dataset.questions, folder.rows, options["seed"])
        write_json(folder.scores, {**report, "settings": settings, "session": session})
    rate = report["tokens_per_second"]
    how = f"{asking.frames} frames" if watching is None else f"online, {watching.memory}, {watching.fps:g} fps"
    how += "" if rate is None else f", {rate:.3g} tokens a second"
    console.print(score_table(report, f"{benchmark.title}, {how}"))
    _report_failures(console, report, folder.answers)
    return 0


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options from the command line, else from --config, else the defaults.

    Raises:
        ValueError: the YAML file is missing, broken or has unknown keys, or --vlm is nowhere.
    """
    from liteframe.texts import read_yaml

    given: dict[str, Any] = {}
    if args.config is not None:
        if not args.config.is_file():
            raise ValueError(f"--config {args.config}: no such file")
        given = read_yaml(args.config) or {}
        if not isinstance(given, dict) or (unknown := sorted(set(given) - set(OPTIONS))):
            found = unknown if isinstance(given, dict) else given
            raise ValueError(f"--config {args.config}: unknown {found}; known: {', '.join(OPTIONS)}")
    options = {name: getattr(args, name, None) for name in OPTIONS}
    options = {name: given.get(name, DEFAULTS.get(name)) if value is None else value for name, value in options.items()}
    if options["frames"] is None and not options["online"]:
        options["frames"] = FRAMES
    if not options["vlm"]:
        raise ValueError("--vlm is missing: the folder or id of a Video LLM")
    return options


def progress(console: Any) -> Any:
    """A line of progress with the time and how many are done."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    return Progress(*Progress.get_default_columns(), TimeElapsedColumn(), MofNCompleteColumn(), console=console)


def report_missing(console: Any, questions: Any, follows: str = "count as wrong and be reported apart") -> None:
    """Say which videos are not there, before the work, and what follows for their questions."""
    videos = sorted({question.video for question in questions})
    missing = [video for video in videos if not Path(video).is_file()]
    if missing:
        console.print(
            f"warning: {len(missing)} of {len(videos)} videos are missing, such as {missing[0]}; "
            f"their questions will {follows}",
            soft_wrap=True,
        )


def _report_failures(console: Any, report: dict[str, Any], answers: Path) -> None:
    failed = report["failed"]
    if failed["questions"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in failed["kinds"].items())
        console.print(
            f"{failed['questions']} questions count as wrong because their video could not be read ({kinds}); "
            f"see 'error' in {answers}. Run the same command again to try them once more"
            f"{', with a longer --deadline' if 'deadline' in failed['kinds'] else ''}.",
            soft_wrap=True,
        )
    if report["unanswered"]:
        console.print(f"{report['unanswered']} replies choose nothing ({report['rule']}).", soft_wrap=True)
