"""`train_lma.py fit`: language model alignment as a training command."""

from lightning.pytorch import Callback

from liteframe.align.callbacks import AdapterSaver, progress_line, write_report
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.module import LMAModule
from liteframe.training.command import TrainingCommand


class LMACommand(TrainingCommand):
    """`fit` for LMA: then the adapter and the report.

    Args:
        arguments: words of the command line; None takes the program's own.
    """

    def __init__(self, arguments: list[str] | None = None):
        super().__init__(LMAModule, ChatDataModule, arguments)

    def run_callbacks(self) -> list[Callback]:
        """Adapter and progress line."""
        return [AdapterSaver(), progress_line()]

    def save_result(self) -> None:
        """The adapter."""
        AdapterSaver().on_train_end(self.trainer, self.model)

    def finish(self) -> None:
        """Write the report."""
        if self.trainer.is_global_zero:
            write_report(self.trainer, self.model, self._get(self.config, "seed_everything"))
