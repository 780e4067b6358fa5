"""Alignment as commands: `liteframe align fit`, `align stages` (several in a row), and `liteframe prefer fit`."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from liteframe.align.callbacks import AdapterSaver, progress_line, write_report
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.module import LMAModule
from liteframe.align.preference import PairDataModule, PreferModule
from liteframe.files import write_atomically
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.texts import read_yaml
from liteframe.training.command import TrainingCommand
from liteframe.training.configs import config_file
from liteframe.training.report import tell
from liteframe.training.run_folder import RunFolder

STAGES_KEYS = {"run", "config", "stages"}


class LMACommand(TrainingCommand):
    """`fit` for LMA: then the adapter and the report.

    Args:
        arguments: words of the command line; None takes the program's own.
        run: see TrainingCommand.
    """

    kind = "lma"
    program = "liteframe align"
    parts: tuple[type[LMAModule], type[ChatDataModule]] = (LMAModule, ChatDataModule)
    shown = {"loss": "loss", "answers": "answer_accuracy"}  # in the progress line

    def __init__(self, arguments: list[str] | None = None, *, run: bool = True):
        super().__init__(*self.parts, arguments, run=run)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.link_arguments("model", "data.processor", compute_fn=processor_of, apply_on="instantiate")
        parser.link_arguments("model", "data.mode_processors", compute_fn=mode_processors_of, apply_on="instantiate")

    @override
    def run_callbacks(self) -> list[Callback]:
        return [AdapterSaver(), progress_line(self.shown, self.settings.data.context_parallel)]

    @override
    def batches_at_once(self, processes: int) -> int:
        devices = self.settings.data.context_parallel
        if processes % devices:
            raise ValueError(
                f"data.context_parallel={devices} does not divide the {processes} processes of this run; start a "
                "multiple of it (torchrun --nproc_per_node), or set it to 1"
            )
        return processes // devices

    @override
    def save_result(self) -> None:
        AdapterSaver().on_train_end(self.trainer, self.model)

    @override
    def finish(self) -> None:
        if self.trainer.is_global_zero:
            write_report(self.trainer, self.model, self._get(self.config, "seed_everything"))


class PreferCommand(LMACommand):
    """`fit` for TPO: the same of preference pairs."""

    kind = "prefer"
    program = "liteframe prefer"
    parts = (PreferModule, PairDataModule)
    shown = {"loss": "loss", "preferred": "preference_accuracy", "margin": "margin"}


def processor_of(module: LMAModule) -> LiteFrameProcessor:
    """What the data module reads conversations with."""
    return module.processor


def mode_processors_of(module: LMAModule) -> dict[str, LiteFrameProcessor]:
    """The same in each mode of an elastic encoder."""
    return module.mode_processors


def run_stages(arguments: Sequence[str]) -> None:
    """`train_lma.py stages --config FILE [further options of fit, for every stage]`."""
    parser = argparse.ArgumentParser(
        prog="train_lma.py stages",
        description="Runs of fit in a row, each going on from the adapter of the last; more options are those of fit.",
    )
    parser.add_argument("--config", required=True, help="file of stages, or the name of one that comes with LiteFrame")
    parser.add_argument("--run", type=Path, help="folder of the run; default: the file's")
    args, shared = parser.parse_known_args(arguments)
    try:
        plan = load_stages(config_file(args.config, "lma/stages"))
    except ValueError as error:
        parser.error(str(error))
    run = args.run or Path(plan["run"])
    adapter: Path | None = None
    for number, stage in enumerate(plan["stages"], 1):
        folder = RunFolder(run / f"{number}_{stage['name']}")
        overrides = run / f"{folder.path.name}.yaml"
        settings = yaml.safe_dump({key: value for key, value in stage.items() if key != "name"}).encode()
        if folder.report.is_file():
            if overrides.is_file() and overrides.read_bytes() != settings:
                parser.error(
                    f"stage {folder.path.name} is finished, with {overrides} and not with what {args.config} says "
                    f"of it now: restore that, or delete {folder.path} and the stages after it to train them again"
                )
            tell(f"stage {folder.path.name} is finished")
        else:
            tell(f"stage {folder.path.name}")
            write_atomically(overrides, settings)
            before = [] if adapter is None else [f"--model.init_adapter={adapter}"]
            configs = [f"--config={plan['config']}", f"--config={overrides}"]
            LMACommand(["fit", *configs, *shared, *before, f"--run={folder.path}", "--resume=auto"])
        adapter = folder.path / "adapter"


def load_stages(path: Path) -> dict[str, Any]:
    """Read a file of stages; `config` comes back as a path that can be opened from here.

    Raises:
        ValueError: the file is missing or is no file of stages; names what is wrong.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of stages")
    plan = read_yaml(path)
    if not isinstance(plan, dict) or set(plan) != STAGES_KEYS:
        raise ValueError(f"{path} must have the keys run, config, stages and no others")
    plan["config"] = os.path.normpath(path.parent / str(plan["config"]))
    if not os.path.isfile(plan["config"]):
        raise ValueError(f"{path}: config {plan['config']} does not exist")
    stages = plan["stages"]
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"{path}: stages must be a list with at least one stage")
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    for number, name in enumerate(names, 1):
        if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"{path}: stage {number} needs a name of letters, digits, - and _, got {name!r}")
    return plan
