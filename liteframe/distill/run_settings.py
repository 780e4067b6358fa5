"""The settings of a CTD run without the run: the same YAML, classes and refusals as `train_ctd.py fit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from liteframe.data.datamodule import ClipDataModule
from liteframe.distill.command import CTDCommand
from liteframe.distill.module import CTDModule


class RunSettings(NamedTuple):
    """What a command line of `train_ctd.py fit` describes; nothing is loaded yet.

    Attributes:
        module: how targets are made, and from which teacher.
        data: which clips.
        trainer: the trainer's settings.
    """

    module: CTDModule
    data: ClipDataModule
    trainer: Any


class _Settings(CTDCommand):
    def before_instantiate_classes(self) -> None:
        """No run folder is claimed."""

    def instantiate_classes(self) -> None:
        """Without the trainer."""
        self.config_init = self.parser.instantiate_classes(self.config)

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""

    def read(self) -> RunSettings:
        config = self.config_init[self.subcommand]
        return RunSettings(config.model, config.data, config.trainer)


def read_run(arguments: Sequence[str]) -> RunSettings:
    """Parse what would follow `train_ctd.py fit`.

    Args:
        arguments: such as ["--config", "configs/ctd/toy.yaml", "--data.videos", "videos"].
    """
    return _Settings(["fit", *arguments]).read()
