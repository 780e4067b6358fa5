"""What an LMA run says and leaves behind: the progress line, the adapter in PEFT's own format, the report."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from liteframe.align.batch import ChatBatch
from liteframe.align.lora import ENCODER, adapted_layers
from liteframe.align.module import LMAModule
from liteframe.files import replacing, write_json
from liteframe.models.vlm.adapter import ORIGIN, frozen_digest
from liteframe.models.vlm.vision import LiteFrameVisionModel
from liteframe.training.report import ProgressLine, environment
from liteframe.training.run_folder import RunFolder


class AdapterSaver(Callback):
    """At the end: checks that no frozen weight has changed and saves `adapter/` (and `encoder/` if it was trained)."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final adapter.

        Raises:
            RuntimeError: a frozen weight changed, so that the adapter would not fit the model it names.
        """
        assert isinstance(pl_module, LMAModule)
        if not trainer.is_global_zero:
            return
        if frozen_digest(pl_module.model) != pl_module.held_digest:
            raise RuntimeError("frozen weights have changed during training; nothing was saved")
        run = RunFolder(trainer.default_root_dir)
        with replacing(run.path / "adapter") as temporary:
            # The embeddings are frozen; "auto" would ask the Hub whether they had been resized.
            pl_module.model.save_pretrained(temporary, save_embedding_layers=False)
            parts = {"vlm": pl_module.vlm, "encoder": pl_module.encoder}
            further = pl_module.save_with_adapter(temporary)
            write_json(temporary / ORIGIN, {**parts, **pl_module.origin, **further})
        if pl_module.train_encoder:
            tower = pl_module.model.get_base_model().model.get_submodule(ENCODER).modules_to_save["default"]
            assert isinstance(tower, LiteFrameVisionModel)
            tower.encoder.save_pretrained(run.encoder)


def progress_line(shown: dict[str, str], context_parallel: int) -> ProgressLine:
    """Progress line of LMA: what is `shown` of the training figures, gradient norm, and samples a second.

    Args:
        shown: names of figures, by what the line calls them.
        context_parallel: devices that have each sample in common.
    """

    def count_conversations(batch: ChatBatch) -> float:
        return len(batch.keys) / context_parallel  # those that could be read

    names = {**shown, "grad": "gradient_norm"}
    return ProgressLine(
        {short: f"train/{name}" for short, name in names.items()}, count=count_conversations, unit="samples"
    )


def write_report(trainer: Trainer, module: LMAModule, seed: int) -> None:
    """Write report.json: figures, time, data, what was trained, versions, machine, date and command."""
    data, line = module.data(), trainer.progress_bar_callback
    assert isinstance(line, ProgressLine)
    values: dict[str, Any] = {
        "kind": module.kind,
        "steps": trainer.global_step,
        "seed": seed,
        "figures": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "time": line.summary(),
        "data": {
            "conversations": data.source,
            "rows": len(data.conversations),
            "batch_size": data.batch_size,
            "frames": data.frames,
            "fps": list(data.fps),
            **data.tally.summary(),
            "token_cache": data.tokens,
            "tokens": data.read_tokens,
            "padding": data.padding_tokens / max(1, data.read_tokens + data.padding_tokens),
        },
        "vlm": module.vlm,
        "encoder": module.encoder,
        "lora": vars(module.lora),
        "lora_layers": len(adapted_layers(module.model)),
        "train_projector": module.train_projector,
        "train_encoder": module.train_encoder,
        "init_adapter": module.init_adapter,
        "quantize": module.quantize,
        **module.facts(),
        "trained_parameters": sum(p.numel() for p in module.model.parameters() if p.requires_grad),
        "precision": str(trainer.precision),
        "config_changes": RunFolder(trainer.default_root_dir).changes(),
        **environment(module.device),
    }
    write_json(RunFolder(trainer.default_root_dir).report, values)
