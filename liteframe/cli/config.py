"""Configurations that come with LiteFrame: their names, and one of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from liteframe.training.configs import packaged_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe config`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="names, and what each is for")
    show = actions.add_parser("show", help="print one: to read its launch line, or to write a file of your own from it")
    show.add_argument("name", help="such as ctd/internvl3_8b")


def run(args: argparse.Namespace) -> int:
    """Prints names or a file; ValueError for an unknown name."""
    configs = packaged_configs()
    if args.action == "list":
        width = max(map(len, configs))
        for name, path in configs.items():
            print(f"{name:{width}}  {_summary(path)}")
        return 0
    named = [name for name in configs if name == args.name] or [n for n in configs if n.endswith(f"/{args.name}")]
    if len(named) != 1:
        what = f"may be {', '.join(named)}" if named else f"is none of {', '.join(configs)}"
        raise ValueError(f"{args.name} {what}")
    print(configs[named[0]].read_text(encoding="utf-8"), end="")
    return 0


def _summary(path: Path) -> str:
    """The first sentence of a configuration's header."""
    lines = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(lines).partition(". ")[0].rstrip(".")
