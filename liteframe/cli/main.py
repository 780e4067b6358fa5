"""Entry point of the `liteframe` command: finds the sub-command, imports only its file, runs it."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from liteframe.data.video.errors import VideoError
from liteframe.files import show_any_name

# By what a user wants to do; each is tested by being named here.
TASKS = {
    "See that it works here": {
        "demo": "the whole road on a small world: distil, align, evaluate, export, ask",
        "doctor": "what this machine can do: devices, decoders, versions, and what is missing for which command",
    },
    "Prepare videos and rows": {
        "scan": "check a folder of videos and write a manifest of the usable ones",
        "manifest": "turn a published data set into a manifest and conversations, or join lists",
        "preview": "show a conversation as it will be learned",
    },
    "Train": {
        "config": "configurations that come along: their names, and one of them to read or to copy",
        "plan": "what a training run will take: memory, time and disk, from a short warm-up",
        "cache": "store a teacher's targets once, check them, describe them",
        "distill": "train a small video encoder from an image teacher (CTD)",
        "align": "train LoRA so that a language model reads the encoder's tokens (LMA)",
        "upgrade": "make a trained encoder elastic: several compressions in one, its own output unchanged",
        "prefer": "make preference pairs from a model's own answers, and train LoRA on them (TPO)",
    },
    "Look at what came out": {
        "report": "a run as one HTML page: curves, data faults, cost, parity; a comparison's pictures and tables",
        "ask": "ask a question about a video",
        "stream": "watch a file, folder, camera or network stream and answer questions while it runs",
        "eval": "answer a file of questions about videos and report accuracy",
        "compare": "a Video LLM, reducers on it and a LiteFrame encoder: accuracy and time at equal cost",
        "bench": "measure kernels and encoders on this machine",
        "info": "parameters and FLOPs, and what a saved encoder is",
    },
    "Take it away": {
        "extract": "one compression of an elastic encoder as an ordinary one",
        "export": "write an encoder or a Video LLM for other software",
    },
}
COMMANDS = {name: summary for commands in TASKS.values() for name, summary in commands.items()}

TRAINING = ("distill", "align")  # of their fit, and that of prefer, Lightning reads the command line


def overview() -> str:
    """All commands, by task."""
    lines = ["liteframe COMMAND ...: small video encoders for Video LLMs. `liteframe COMMAND --help` says more."]
    for task, commands in TASKS.items():
        lines += ["", task, *(f"  {name.ljust(9)} {summary}" for name, summary in commands.items())]
    return "\n".join(lines)


def train(command: str, arguments: list[str], program: str | None = None) -> int:
    """`distill`, `align` or `prefer fit`; train_ctd.py and train_lma.py are the first two, too."""
    from liteframe.training.exit_codes import exit_codes

    with exit_codes(program or f"liteframe {command}"):
        if command == "distill":
            from liteframe.distill.command import CTDCommand

            CTDCommand(arguments)
        elif command == "prefer":
            from liteframe.align.command import PreferCommand

            PreferCommand(arguments)
        else:
            from liteframe.align.command import LMACommand, run_stages

            if arguments[:1] == ["stages"]:
                run_stages(arguments[1:])
            else:
                LMACommand(arguments)
    return 0


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one command only (the others are not imported)."""
    parser = argparse.ArgumentParser(
        prog="liteframe", description="Small video encoders for Video LLMs: distil, align, export."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == command and name not in TRAINING:
            importlib.import_module(f"liteframe.cli.{name}").add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (0 only on success)."""
    show_any_name()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] in TRAINING or arguments[:2] == ["prefer", "fit"]:
        return train(arguments[0], arguments[1:])
    command = next((word for word in arguments if word in COMMANDS), None)
    parser = build_parser(command)
    args, others = parser.parse_known_args(arguments)
    if "overrides" in args:
        # Settings of a training run, which its own parser reads.
        args.overrides = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        return int(importlib.import_module(f"liteframe.cli.{args.command}").run(args))
    except (ValueError, OSError, VideoError) as error:
        print(f"liteframe {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"liteframe {args.command}: interrupted", file=sys.stderr)
        return 130
