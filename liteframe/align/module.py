"""Language model alignment (LMA, arXiv 2605.17260) as a Lightning module: wiring, no maths of its own."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from liteframe.align.datamodule import ChatDataModule
from liteframe.align.dataset import ChatBatch, FeatureCache, check_lengths
from liteframe.align.lora import ENCODER, LoraSettings, add_lora, describe, quantize_frozen
from liteframe.align.loss import AnswerLoss, answer_loss, answer_positions, scale_gradients
from liteframe.models.vlm.adapter import frozen_digest, origin
from liteframe.models.vlm.chat import template_warning
from liteframe.models.vlm.load import load_video_llm
from liteframe.training.guard import GuardSettings
from liteframe.training.guarded_module import GuardedModule
from liteframe.training.report import tell
from liteframe.training.schedule import OptimizerSettings, configure_adamw, total_steps

LMA_OPTIMIZER = OptimizerSettings(lr=4e-5, weight_decay=0.05, warmup_steps=750)


class LMAModule(GuardedModule):
    """Trains LoRA layers of a Video LLM's language model to read a LiteFrame encoder's tokens.

    Args:
        vlm: folder or Hugging Face id of an InternVL in transformers' format.
        encoder: folder of the LiteFrame encoder that takes the place of its vision tower.
        lora: the low-rank update.
        train_projector: train InternVL's projector too.
        train_encoder: train the encoder too.
        encoder_lr_ratio: learning rate of a trained encoder as a part of `optimizer.lr` (1/5 in LLaVA-OneVision,
            arXiv 2408.03326).
        init_adapter: folder of an adapter to go on from, of a run with the same `vlm`, `encoder` and `lora`.
        quantize: "nf4" holds the language model's frozen layers in 4 bits (bitsandbytes), for small GPUs.
        gradient_checkpointing: compute the language model's activations twice instead of keeping them, and those of
            the encoder where it is trained.
        optimizer: AdamW and its schedule.
        guard: which steps are skipped, and when the run stops.
    """

    def __init__(
        self,
        vlm: str,
        encoder: str,
        lora: LoraSettings = LoraSettings(),  # noqa: B008 - shown as the default in --help, never changed
        train_projector: bool = False,
        train_encoder: bool = False,
        encoder_lr_ratio: float = 0.2,
        init_adapter: str | None = None,
        quantize: Literal["none", "nf4"] = "none",
        gradient_checkpointing: bool = False,
        optimizer: OptimizerSettings = LMA_OPTIMIZER,
        guard: GuardSettings = GuardSettings(),  # noqa: B008 - as above
    ):
        super().__init__(guard)
        if not 0 < encoder_lr_ratio <= 1:
            raise ValueError(f"model.encoder_lr_ratio is {encoder_lr_ratio}; it must lie in (0, 1]")
        self.vlm, self.encoder, self.lora, self.init_adapter = vlm, encoder, lora, init_adapter
        self.encoder_lr_ratio, self.quantize = encoder_lr_ratio, quantize
        self.train_projector, self.train_encoder = train_projector, train_encoder
        self.gradient_checkpointing = gradient_checkpointing
        self.optimizer_settings = optimizer
        self.cache: FeatureCache | None = None
        self.frozen_digest = self.held_digest = ""  # of the weights as loaded, and as they are held
        self.origin: dict[str, str] = {}  # what the adapter will recognize its model by
        self._window: list[AnswerLoss] = []

    def configure_model(self) -> None:
        """Load the Video LLM, add LoRA, say what will be trained, and give the data its processor."""
        if hasattr(self, "model"):
            return
        data = self.data()
        if data.cache_features and (self.train_projector or self.train_encoder):
            raise ValueError("data.cache_features: features change while the encoder or the projector is trained")
        model, data.processor = load_video_llm(self.vlm, encoder=self.encoder)
        self.origin = origin(model)
        model.config.use_cache = False
        if self.gradient_checkpointing and self.train_encoder:
            model.model.vision_tower.encoder.checkpoint_activations()
        self.model = add_lora(
            model,
            self.lora,
            train_projector=self.train_projector,
            train_encoder=self.train_encoder,
            start_from=self.init_adapter,
        )
        # Lightning leaves modes as they are, and transformers checkpoints activations in training mode only.
        self.model.train()
        if self.gradient_checkpointing:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        if data.cache_features:
            self.cache = data.known = FeatureCache()
        self.frozen_digest = self.held_digest = frozen_digest(self.model)
        if self.quantize == "nf4":
            quantize_frozen(self.model)
            self.held_digest = frozen_digest(self.model)
        longest = self._longest(data)
        lines = [describe(self.model), longest, template_warning(data.processor)]
        tell("\n".join(filter(None, lines)))

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up, cosine; a trained encoder learns more slowly."""
        steps = total_steps(self.trainer)
        return configure_adamw(self.model, self.optimizer_settings, steps, {ENCODER: self.encoder_lr_ratio})

    def on_train_batch_start(self, batch: ChatBatch, batch_idx: int) -> None:
        """Make LoRA's dropout a function of seed and position, so that a resumed run continues the same one."""
        place = [self.data().seed, self.global_step, len(self.micro_batches), self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def step_loss(self, batch: ChatBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Summed loss of the answers; it is normalized when the gradients of the whole global batch are there."""
        if not batch.keys:
            # Nothing to learn from; other ranks may wait for these gradients, though.
            return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * 0.0, {}
        positions = answer_positions(batch.labels)
        logits = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            logits_to_keep=positions,
            use_cache=False,
            **self._videos(batch),
        ).logits
        loss = answer_loss(logits, batch.labels, positions)
        self._window.append(AnswerLoss(loss.total.detach(), loss.tokens, loss.correct))
        total = loss.total
        if not batch.frames and (self.train_projector or self.train_encoder):
            # Distributed training waits for gradients of all that is trained, also where nothing is shown.
            unused = [p.sum() for name, p in self.model.named_parameters() if p.requires_grad and ".lora_" not in name]
            total = total + 0.0 * torch.stack(unused).sum()
        return total, {"frames": batch.pixels, "prediction": logits}

    def clips(self, batch: ChatBatch) -> list[dict[str, Any]]:
        """See GuardedModule."""
        paths = iter(path for path, _ in batch.frames)
        shown = [[next(paths) for _ in range(count)] for count in batch.shown]
        return [{"key": list(key), "path": ", ".join(p)} for key, p in zip(batch.keys, shown, strict=True)]

    def finish_gradients(self, parameters: Sequence[Tensor], micro_batches: int) -> dict[str, float]:
        """Normalize by the answer tokens of the global batch."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        for loss in self._window:
            sums += torch.stack([part.double() for part in loss])
        self._window.clear()
        total, tokens, correct = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not tokens:
            return {}
        # Lightning has divided by the accumulation steps, and distributed training by the devices.
        scale_gradients(parameters, micro_batches / tokens)
        return {"train/loss": total / tokens, "train/answer_accuracy": correct / tokens}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trained weights only: the Video LLM stays where it came from."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the trained weights; `on_load_checkpoint` has compared them."""
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which frozen weights the trained ones belong to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["frozen_digest"] = self.frozen_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue on other frozen weights.

        Raises:
            ValueError: the Video LLM or the encoder is not the one that the run started with.
        """
        super().on_load_checkpoint(checkpoint)
        if checkpoint["frozen_digest"] != self.frozen_digest:
            raise ValueError(
                f"--resume: the weights of {self.vlm} or {self.encoder} are not those the run started with"
            )

    def _longest(self, data: ChatDataModule) -> str:
        """How long the longest video is in tokens, before the run finds out."""
        assert data.processor is not None
        frames = max(data.frames)
        text = data.processor.video_text(data.processor.slots(frames, *data.processor.frame_size))
        tokens = len(data.processor.tokenizer(text, verbose=False)["input_ids"])
        limit = self.model.get_base_model().config.text_config.max_position_embeddings
        if tokens >= limit:
            raise ValueError(
                f"data.frames={data.frames}: {frames} frames take {tokens} tokens, but the language model reads "
                f"{limit}; use fewer frames"
            )
        check_lengths(data.conversations, data.processor, frames, limit)
        return f"a video of {frames} frames takes {tokens:,} of the {limit:,} tokens that the language model reads"

    def _videos(self, batch: ChatBatch) -> dict[str, Any]:
        if not batch.frames:
            return {}
        if self.cache is None:
            return {"pixel_values_videos": batch.pixels, "video_frames": batch.video_frames}
        return {"mm_encoder_outputs": {"video": self.cache.features(self.model.get_base_model().model, batch)}}

    def data(self) -> ChatDataModule:
        """The data module of this run."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ChatDataModule):
            raise ValueError("LMAModule needs a ChatDataModule: pass it to the trainer as datamodule=")
        return data
