"""Do again a step that stopped a training run, and say where its numbers went wrong."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from liteframe.align.command import LMACommand
from liteframe.distill.command import CTDCommand
from liteframe.training.command import TrainingCommand
from liteframe.training.replay import replay
from liteframe.training.replay_dump import read_dump

# Compiled blocks would hide their insides.
COMMANDS: dict[str, tuple[type[TrainingCommand], list[str]]] = {
    "CTDModule": (CTDCommand, ["--model.compile=false"]),
    "LMAModule": (LMACommand, []),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="RUN/replay/step_..., as the stopped run named it")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu or auto (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints losses, gradient norms and the first value that is not finite; 0 if the step came out as recorded."""
    state = read_dump(args.folder).state
    if state["module"] not in COMMANDS:
        raise ValueError(f"{args.folder} is a dump of {state['module']!r}; known are {', '.join(COMMANDS)}")
    command, settings = COMMANDS[state["module"]]
    outcome: list[bool] = []

    class Replay(command):  # type: ignore[misc, valid-type]
        """The run's own command line, up to where training would start."""

        def fit(self, **kwargs: Any) -> None:
            outcome.append(replay(self.model, self.datamodule, self.trainer, args.folder))

        def after_fit(self) -> None:
            """Nothing was trained."""

    with tempfile.TemporaryDirectory() as nowhere:
        Replay(
            [
                "fit", f"--config={args.folder / 'config.yaml'}", f"--run={nowhere}", "--data.workers=0",
                f"--trainer.accelerator={args.accelerator}", f"--trainer.precision={state['precision']}",
                "--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto", *settings,
            ]
        )  # fmt: skip
    return 0 if outcome == [True] else 1
