"""Temporal preference optimization (TPO, arXiv 2501.13919) on the road of LMA: pairs in, an adapter out."""

from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from liteframe.align.batch import ChatBatch
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.lora import LoraSettings, encoder_of
from liteframe.align.module import LMAModule
from liteframe.align.objectives.dpo import ROWS, DirectPreferenceOptimization
from liteframe.align.reference import ReferenceLogProbs, digest
from liteframe.align.tokens.settings import encoder_identity
from liteframe.data.stream import ClipStream
from liteframe.models.vlm.chat import TURN_END
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.training.guard import GuardSettings
from liteframe.training.schedule import OptimizerSettings

NO_DROPOUT = LoraSettings(dropout=0.0)
PREFERENCE_OPTIMIZER = OptimizerSettings(lr=5e-6, weight_decay=0.0, warmup_steps=16)


class PairDataModule(ChatDataModule):
    """Preference pairs about videos -> batches of two rows a pair for the language model.

    Args:
        processor: of the Video LLM that reads them.
        pairs: JSONL of `liteframe prefer pairs`, or rows of ms-swift or LLaMA-Factory; see liteframe.align.pair_rows.
        frames: frame budgets; each pair draws one of them.
        **kwargs: as ChatDataModule.
    """

    setting = "data.pairs"
    pairs = True

    def __init__(self, processor: LiteFrameProcessor, pairs: str, frames: list[int], **kwargs: Any):
        super().__init__(processor, pairs, frames, **kwargs)

    def tokens_per_pair(self, step: int) -> float:
        """Tokens of a chosen answer and its end: the mean over all pairs of an optimizer step, read or not."""
        answers = (self.conversations[index].turns[-1].text for _, index in self._steps.batch(step))
        return fmean(
            len(self.processor.tokenizer(f"{answer}{TURN_END}", add_special_tokens=False)["input_ids"])
            for answer in answers
        )

    @cached_property
    def _steps(self) -> ClipStream:
        return self.stream(self.dataset(), self.batch_size, 1)


class PreferModule(LMAModule):
    """Trains LoRA layers to prefer an answer, on a frozen encoder and projector: a pair's video is encoded once.

    The reference is the model as training starts: without LoRA, or with the adapter that it goes on from.

    Args:
        vlm: as LMAModule.
        encoder: as LMAModule.
        beta: how much a gain on the reference counts; the authors take 0.2 for LLaVA-Video, 0.3 for LongVA.
        alpha: weight of the cross-entropy of the chosen answers, a mean over their tokens; 1 and 0.5 there.
        lora: as LMAModule. Without dropout unless told otherwise: it would blur the gain.
        init_adapter: as LMAModule; of LMA, as a rule.
        quantize: as LMAModule.
        gradient_checkpointing: as LMAModule.
        reference_log_probs: file that keeps what the reference makes of each pair, for later epochs and runs; made if
            there is none.
        optimizer: as LMAModule.
        guard: as LMAModule.
    """

    kind = "tpo"

    def __init__(
        self,
        vlm: str,
        encoder: str,
        beta: float = 0.2,
        alpha: float = 1.0,
        lora: LoraSettings = NO_DROPOUT,
        init_adapter: str | None = None,
        quantize: Literal["none", "nf4"] = "none",
        gradient_checkpointing: bool = False,
        reference_log_probs: str | None = None,
        optimizer: OptimizerSettings = PREFERENCE_OPTIMIZER,
        guard: GuardSettings = GuardSettings(),  # noqa: B008 - shown as the default in --help, never changed
    ):
        preferences = DirectPreferenceOptimization(beta, alpha)
        super().__init__(
            vlm, encoder, lora, init_adapter=init_adapter, quantize=quantize, optimizer=optimizer, guard=guard,
            gradient_checkpointing=gradient_checkpointing,
        )  # fmt: skip
        self.objective = self.preferences = preferences
        self.reference_log_probs = reference_log_probs

    @override
    def facts(self) -> dict[str, Any]:
        reference = "the model without LoRA" if self.init_adapter is None else self.init_adapter
        return {"beta": self.preferences.beta, "alpha": self.preferences.alpha, "reference": reference}

    @override
    def on_train_batch_start(self, batch: ChatBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not self.micro_batches:  # the first of a step
            self.preferences.tokens_per_pair = self.data().tokens_per_pair(self.global_step)

    @override
    def _build_model(self) -> PreTrainedModel:
        model = super()._build_model()
        self.preferences.start_from(self.model)
        if self.reference_log_probs is not None:
            self.preferences.kept = ReferenceLogProbs(self.reference_log_probs, self._reference())
        return model

    def _reference(self) -> dict[str, str | None]:
        """All that the reference's log-probabilities of given tokens and frames depend on, by settings."""
        return {
            "model.vlm, model.encoder": self.held_digest,
            "model.init_adapter": self.contents["model.init_adapter"],
            "how frames are prepared": digest(encoder_identity(encoder_of(self.model), self.processor)),
            "data.tokens": self.data().contents["data.tokens"],
            "trainer.precision": str(self.trainer.precision),
        }

    @override
    def _videos(self, batch: ChatBatch) -> dict[str, Any]:
        inputs = super()._videos(batch)
        if not inputs:
            return {}
        encoded = iter(inputs["mm_encoder_outputs"]["video"].pooler_output)
        rows: list[Tensor] = []
        for count in batch.media_counts:
            rows += list(islice(encoded, count)) * ROWS
        return {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=rows)}}

    @override
    def data(self) -> PairDataModule:
        data = super().data()
        if not isinstance(data, PairDataModule):
            raise ValueError("PreferModule needs a PairDataModule: pass it to the trainer as datamodule=")
        return data
