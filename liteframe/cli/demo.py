"""The whole road on a small world: cache, distil, align, evaluate, export, ask."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe demo`."""
    parser.add_argument("--full", action="store_true", help="three seeds, more videos and more steps")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder to write (default runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of world and training, the first of --full's (default 0)")


def run(args: argparse.Namespace) -> int:
    """Run the demo, each process in one thread, and say where its files are.

    Models this small gain little from a second thread, the figures would depend on how many cores there are, and beside
    other work threads that wait for each other take ten times as long. What can be shared out is done by processes.
    """
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from liteframe.demo.demo import FULL, QUICK, run_demo

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    console = Console()
    report = run_demo(args.run, FULL if args.full else QUICK, args.seed, console)
    console.print(
        f"{sum(report['seconds'].values()) / 60:.1f} minutes. {args.run}/report.json, results.md and "
        "accuracy_against_time.png hold the figures; hf-vlm/README.md says how to load the exported model; "
        f"tensorboard --logdir {args.run} shows the training curves."
    )
    if not args.full:
        console.print("`liteframe demo --full` goes the same road with three seeds, more videos and more steps.")
    return 0
