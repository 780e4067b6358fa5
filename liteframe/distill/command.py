"""`train_ctd.py fit`: compressed token distillation as a training command."""

from __future__ import annotations

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from liteframe.data.preprocess import FrameFormat
from liteframe.distill.callbacks import CTDProgress, EncoderSaver, write_report
from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.module import CTDModule
from liteframe.distill.panel import FeaturePanel
from liteframe.training.command import TrainingCommand
from liteframe.training.ema import WeightEMA, weight_ema


class CTDCommand(TrainingCommand):
    """`fit` for CTD: then a last validation, the encoder and the report.

    Args:
        arguments: words of the command line; None takes the program's own.
        run: see TrainingCommand.
    """

    kind = "ctd"
    program = "liteframe distill"
    shardable = True

    def __init__(self, arguments: list[str] | None = None, *, run: bool = True):
        super().__init__(CTDModule, ClipDataModule, arguments, run=run)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What CTD adds to a training command."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="folder of a saved encoder to start from, or timm/<name>: a ViT of the student's width",
        )
        parser.link_arguments("init_from", "model.init_from")
        parser.link_arguments("model.student.clip_frames", "data.clip_frames")
        parser.link_arguments("model", "data.frame_format", _frame_format, apply_on="instantiate")
        parser.add_lightning_class_args(FeaturePanel, "panel")
        parser.add_lightning_class_args(WeightEMA, "ema")

    def before_instantiate_classes(self) -> None:
        """A profile does not measure the statistics of a whole run first."""
        super().before_instantiate_classes()
        config = self.settings
        if self.step_profile is not None and config.data.cache is None:
            config.model.target.statistics_clips = min(config.model.target.statistics_clips, config.data.batch_size)

    @override
    def run_callbacks(self) -> list[Callback]:
        return [EncoderSaver(), CTDProgress()]

    def save_result(self) -> None:
        """The encoder, of averaged weights if there are any."""
        weight_ema(self.trainer).on_train_start(self.trainer, self.model)
        EncoderSaver().on_train_end(self.trainer, self.model)

    def finish(self) -> None:
        """Validate the final weights and write the report."""
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.datamodule.val_entries:
            figures.update(self._validate())
            ema = weight_ema(self.trainer)
            if ema.average:
                with ema.paused():
                    figures |= {f"{name}_without_ema": value for name, value in self._validate().items()}
        if self.trainer.is_global_zero:
            write_report(self.trainer, self.model, figures, self._get(self.config, "seed_everything"))

    def _validate(self) -> dict[str, float]:
        return dict(*self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False))


def _frame_format(module: CTDModule) -> FrameFormat:
    return module.frame_format
