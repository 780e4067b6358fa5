"""Preference pairs from a model's own answers, and training on them (TPO)."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from liteframe.cli.eval import OPTIONS, add_model, read_options, report_missing

DEADLINE = 60.0  # seconds of a judge


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe prefer`; those of its `fit` are read by Lightning."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("fit", help="train LoRA on pairs; options as of `liteframe align fit`, with --data.pairs")
    pairs = actions.add_parser(
        "pairs",
        help="make pairs",
        description="Puts questions about your videos to a model twice: about what is shown, and about less of it or "
        "another order. Pairs in which a judge finds the first answer better are kept; all others are counted.",
    )
    pairs.add_argument("questions", type=Path, help="JSONL as of `liteframe eval`; a row may have start, end and facts")
    pairs.add_argument(
        "-o", "--out", type=Path, required=True, help="folder of the pairs; one that exists is continued"
    )
    add_model(pairs)
    pairs.add_argument(
        "--kinds",
        default="irrelevant,incomplete,shuffled",
        help="what the rejected answer is about: irrelevant (outside of start to end), incomplete (half of the video), "
        "shuffled (another order); default: all three",
    )
    pairs.add_argument("--judge", help="exact (the row's answer, as eval reads it; default) or toyworld")
    pairs.add_argument(
        "--judge-command",
        metavar="COMMAND",
        help="instead: a command that reads JSON with question, answer, facts, chosen and rejected, and writes chosen, "
        "rejected, tie or bad",
    )
    pairs.add_argument("--judge-deadline", type=float, help=f"seconds that it may take (default {DEADLINE:g})")
    pairs.add_argument("--frames", type=int, help="frames of each video, spread evenly (default 32)")
    pairs.add_argument("--fps", type=float, help="frames a second, as many as --frames allows; default: any rate")
    pairs.add_argument("--prompt", help="what is asked, with places {question} and {options}")
    pairs.add_argument("--max-new-tokens", type=int, help="longest answer in tokens (default 16)")
    pairs.add_argument("--seed", type=int, help="of what rejected answers are about (default 0)")
    pairs.add_argument("--deadline", type=float, help="seconds that one reading of frames may take (default 300)")


def run(args: argparse.Namespace) -> int:
    """Make pairs; ValueError where questions, model, judge or folder are at fault, or no pair is left."""
    from rich.console import Console

    from liteframe.cli.eval import progress
    from liteframe.evaluate.asking import check_words
    from liteframe.evaluate.benchmarks.records import check_questions
    from liteframe.evaluate.folder import EvalFolder, check_folder
    from liteframe.evaluate.settings import asking_of, determining, load_system
    from liteframe.files import write_json, write_jsonl
    from liteframe.prefer.pairs import PairMaker, Questions, attempt_id, count, pair_rows
    from liteframe.training.report import environment

    kinds = parse_kinds(args.kinds)
    check_folder(args.out)
    options = read_options(argparse.Namespace(**{**dict.fromkeys((*OPTIONS, "config")), **vars(args)}))
    questions = Questions.load(args.questions, labelled=args.judge_command is None)
    judge, judged = make_judge(args, questions)
    benchmark, dataset = questions.benchmark, questions.dataset
    check_questions(dataset.questions, benchmark.layout)
    asking = asking_of(benchmark, dataset, options)
    check_words(benchmark, dataset.questions, asking)
    console = Console()
    report_missing(console, dataset.questions, "give no pairs and be counted")
    system = load_system(options)
    maker = PairMaker(system, questions, asking, judge, options["seed"])
    settings = {**determining(benchmark, dataset, asking, options, system.model), "kinds": kinds, "judge": judged}
    session = {**environment(system.model.device), **{k: options[k] for k in ("vlm", "encoder", "adapter")}}
    wanted = [(question, kind) for question in dataset.questions for kind in kinds]
    with EvalFolder(args.out, settings, session) as folder:
        todo = [(q, kind) for q, kind in wanted if folder.rows.get(attempt_id(q, kind), {}).get("reply") is None]
        if len(todo) < len(wanted):
            console.print(f"continuing: {len(wanted) - len(todo)} of {len(wanted)} tries are done")
        with progress(console) as bar:
            task = bar.add_task("tries", total=len(todo))
            for row in maker.attempts(todo):
                folder.append(row)
                bar.advance(task)
        folder.sync()
        counts = count(folder.rows[attempt_id(q, kind)] for q, kind in wanted)
        write_json(args.out / "counts.json", counts)
        shared = {"model": settings["model"]["sha256"], "seed": options["seed"]}
        rows = pair_rows(dataset.questions, kinds, folder.rows, shared)
        if rows:
            write_jsonl(rows, args.out / "pairs.jsonl")
        console.print("\n".join(count_lines(counts)), markup=False, highlight=False, soft_wrap=True)
    if not rows:
        raise ValueError(f"no pair is left; {folder.answers} has the reason for each")
    return 0


def parse_kinds(text: str) -> list[str]:
    """Kinds of pairs, separated by commas.

    Raises:
        ValueError: one is unknown or stands twice.
    """
    from liteframe.prefer.views import KINDS

    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"--kinds {text}: {unknown[0]!r} is none of {', '.join(KINDS)}")
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"--kinds {text}: each kind once")
    return kinds


def make_judge(args: argparse.Namespace, questions: Any) -> tuple[Any, dict[str, Any]]:
    """The judge, and what determines its verdicts.

    Raises:
        ValueError: there is no such judge, or options contradict.
    """
    from liteframe.prefer.judges import JUDGES, CommandJudge

    if args.judge_command is None:
        name = args.judge or "exact"
        if args.judge_deadline is not None:
            raise ValueError("--judge-deadline is for a --judge-command; leave it out")
        if name not in JUDGES:
            raise ValueError(f"--judge {name}: there are {', '.join(JUDGES)}; for one of your own give --judge-command")
        return JUDGES[name](questions.benchmark), {"name": name}
    if args.judge is not None:
        raise ValueError("--judge and --judge-command: name one of them")
    words = shlex.split(args.judge_command)
    return CommandJudge(words, DEADLINE if args.judge_deadline is None else args.judge_deadline), {"command": words}


def count_lines(counts: dict[str, Any]) -> list[str]:
    """What came of all tries, a line each."""
    rows = [("tries", counts["tried"]), *counts["dropped"].items()]
    rows += [("kept", counts["kept"]), *((f"  {kind}", number) for kind, number in counts["by_kind"].items())]
    width = max(len(name) for name, _ in rows)
    return [f"{name:{width}}  {number:>7,}" for name, number in rows]
