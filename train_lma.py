"""Language model alignment: train LoRA on the language model of a Video LLM that has a LiteFrame encoder.

python train_lma.py fit --config configs/lma/<run>.yaml [--data.conversations rows.jsonl] [--run DIR] [...]
"""

from lightning.pytorch import Callback

from liteframe.align.callbacks import AdapterSaver, progress_line, write_report
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.module import LMAModule
from liteframe.training.command import TrainingCommand, exit_codes


class LMACommand(TrainingCommand):
    """`fit` for LMA: then the adapter and the report."""

    def run_callbacks(self) -> list[Callback]:
        """Adapter and progress line."""
        return [AdapterSaver(), progress_line()]

    def after_fit(self) -> None:
        """Write the report."""
        if not self.trainer.callback_metrics:
            print(f"{self.trainer.global_step} steps are done already; --trainer.max_steps takes the run further")
            return
        if self.trainer.is_global_zero:
            write_report(self.trainer, self.model, self._get(self.config, "seed_everything"))


def main() -> None:
    """Entry point."""
    with exit_codes("train_lma.py"):
        LMACommand(LMAModule, ChatDataModule)


if __name__ == "__main__":
    main()
