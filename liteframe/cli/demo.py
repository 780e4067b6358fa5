"""The whole road on a small world: distil, align, evaluate, export, ask."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe demo`."""
    parser.add_argument("--full", action="store_true", help="more videos and steps: the result that the README records")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder to write (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of the training (default 0)")


def run(args: argparse.Namespace) -> int:
    """Run the demo and say where its files are."""
    from rich.console import Console
    from transformers.utils import logging

    from liteframe.demo.demo import FULL, QUICK, run_demo

    logging.disable_progress_bar()
    console = Console()
    report = run_demo(args.run, FULL if args.full else QUICK, args.seed, console)
    if not args.full:
        console.print(
            "Ten minutes take the student part of the way. `liteframe demo --full` (about half an hour) distils three "
            "times as long on three times as many videos; the README records what it gave."
        )
    console.print(
        f"{sum(report['seconds'].values()) / 60:.1f} minutes. {args.run}/report.json, results.md and "
        f"accuracy_against_time.png hold the figures; hf-vlm/README.md says how to load the exported model; "
        f"tensorboard --logdir {args.run} shows the training curves."
    )
    return 0
