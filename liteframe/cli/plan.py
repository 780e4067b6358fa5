"""What a run of train_ctd.py or train_lma.py will take: memory, time, disk, from a short warm-up on this machine."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe plan`."""
    parser.description = (
        "Trains a few steps of a run, with its data, in one process, throws them away, and says what the whole run "
        "will take. Other options (--data.videos, --trainer.max_steps, ...) change the run, as they do for "
        "train_ctd.py and train_lma.py."
    )
    parser.add_argument("--config", required=True, metavar="NAME|FILE", help="configuration of the run")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps to measure (default: %(default)s)")
    parser.add_argument("--views", type=int, default=8, metavar="K", help="clips of a video that a cache holds (8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON, too")
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Warms up and prints the plan; ValueError where the configuration or the videos are at fault."""
    from liteframe.files import check_output, write_json
    from liteframe.training.configs import config_file
    from liteframe.training.report import environment

    if args.steps < 1 or args.views < 1:
        raise ValueError("--steps and --views must be at least 1")
    if args.json is not None:
        check_output(args.json)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="liteframe-plan-") as folder:
        config = str(config_file(args.config, ""))
        words = ["--config", config, *args.overrides, "--run", folder, "--profile", str(args.steps)]
        record = _plan(config, words, args.views)
    print("\n".join(lines(record)))
    print(f"\nplanned in {time.perf_counter() - began:.0f} s; nothing was kept")
    if args.json is not None:
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        write_json(args.json, {"kind": "plan", "config": args.config, **record, **environment(device)})
    return 0


def _plan(config: str, words: list[str], views: int) -> dict[str, Any]:
    """The plan of the kind of run that the file describes: a language model to align, or a teacher to learn from."""
    from liteframe.training.configs import run_kind

    kind = run_kind(Path(config))
    if kind != "ctd":
        from liteframe.align.command import LMACommand, PreferCommand
        from liteframe.align.plan import plan_lma

        return plan_lma(PreferCommand if kind == "prefer" else LMACommand, words)
    from liteframe.distill.plan import plan_ctd

    return plan_ctd(words, views)


def lines(record: dict[str, Any]) -> list[str]:
    """One line a figure under a heading a section."""
    text = []
    for section, values in record.items():
        text += ["", section.replace("_", " ")]
        text += [f"  {name.replace('_bytes', '').replace('_', ' '):36s}{_value(name, value)}"
                 for name, value in values.items() if value != ""]  # fmt: skip
    return text[1:]


def _value(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if "bytes" in name:
        return _scaled(value, "B")
    if "flops" in name:
        return _scaled(value, "FLOP/s" if name.endswith("per_second") else "FLOP")
    if "seconds" in name:
        return f"{value:.4g} s"
    if name.endswith("share"):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _scaled(value: float, unit: str) -> str:
    prefixes = " kMGTPE"
    power = min(len(prefixes) - 1, int(math.log10(value) / 3)) if value >= 1 else 0
    return f"{value / 1000**power:.4g} {prefixes[power].strip()}{unit}"
