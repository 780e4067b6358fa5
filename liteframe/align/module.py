"""Language model alignment (LMA, arXiv 2605.17260) as a Lightning module: wiring, no maths of its own."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from liteframe.align.batch import ChatBatch
from liteframe.align.context_parallel import ContextShares
from liteframe.align.conversation_files import describe_unread
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.dense_teacher import DenseTeacher, DistillationSettings
from liteframe.align.lengths import check_lengths
from liteframe.align.lora import ENCODER, LoraSettings, add_lora, describe, encoder_of, quantize_frozen
from liteframe.align.objectives import Objective
from liteframe.align.objectives.context_parallel import ContextParallelTuning
from liteframe.align.objectives.distillation import LogitDistillation
from liteframe.align.objectives.learned_clips import ClipTuning
from liteframe.align.objectives.memory import MemoryTuning
from liteframe.align.objectives.qformer import QFormerTuning
from liteframe.align.objectives.sft import SupervisedFineTuning, zero_of
from liteframe.align.objectives.summary import SummaryTuning
from liteframe.align.tokens.settings import encoder_identity
from liteframe.files import file_digest
from liteframe.models.vlm.adapter import ADAPTER_WEIGHTS, check_trained_for, frozen_digest, origin, trained_for
from liteframe.models.vlm.attach import with_encoder
from liteframe.models.vlm.attention import FULL, takes_causal_masks
from liteframe.models.vlm.chat import template_warning
from liteframe.models.vlm.clip_summarizer import ClipSettings
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.load import load_processors, load_video_llm
from liteframe.models.vlm.qformer import QFormerSettings
from liteframe.models.vlm.summary_tokens import SummarySettings
from liteframe.models.vlm.trained_memory import TRAINED, save_part
from liteframe.training.failures import sum_over_ranks
from liteframe.training.guard import GuardSettings
from liteframe.training.guarded_module import GuardedModule
from liteframe.training.report import tell
from liteframe.training.schedule import OptimizerSettings, configure_optimizer, total_steps

TUNINGS: dict[str, Callable[..., MemoryTuning]] = {
    one.memory: one for one in (SummaryTuning, ClipTuning, QFormerTuning)
}
LMA_OPTIMIZER = OptimizerSettings(lr=4e-5, weight_decay=0.05, warmup_steps=750)


class LMAModule(GuardedModule):
    """Trains LoRA layers of a Video LLM's language model to read a LiteFrame encoder's tokens.

    Args:
        vlm: folder or Hugging Face id of a Video LLM of a known family, in transformers' format.
        encoder: folder of the LiteFrame encoder that takes the place of its vision tower.
        lora: the low-rank update.
        train_projector: train the Video LLM's projector too.
        train_encoder: train the encoder too.
        encoder_lr_ratio: learning rate of a trained encoder as a part of `optimizer.lr` (1/5 in LLaVA-OneVision,
            arXiv 2408.03326).
        init_adapter: folder of an adapter to go on from, of a run with the same `vlm`, `encoder` and `lora`; only the
            dropout may be another.
        quantize: "nf4" holds the language model's frozen layers in 4 bits (bitsandbytes), for small GPUs.
        gradient_checkpointing: compute the language model's activations twice instead of keeping them, and those of
            the encoder where it is trained.
        summary: summary tokens, for the memory of that name; the encoder and the projector stay frozen.
        learned_clips: a summarizer of clips, for the memory of that name; as above.
        qformer: a Q-Former with banks, for the memory of that name; as above. A run has one of the three.
        distillation: a soft target beside the labels, from the Video LLM as it was, on dense frames.
        optimizer: AdamW, or Muon for the blocks of a trained encoder; and its schedule.
        guard: which steps are skipped, and when the run stops.

    Attributes:
        kind: of the run, in report.json.
    """

    kind = "lma"

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
        summary: SummarySettings | None = None,
        learned_clips: ClipSettings | None = None,
        qformer: QFormerSettings | None = None,
        distillation: DistillationSettings = DistillationSettings(),  # noqa: B008 - as above
        optimizer: OptimizerSettings = LMA_OPTIMIZER,
        guard: GuardSettings = GuardSettings(),  # noqa: B008 - as above
    ):
        super().__init__(guard)
        if not 0 < encoder_lr_ratio <= 1:
            raise ValueError(f"model.encoder_lr_ratio is {encoder_lr_ratio}; it must lie in (0, 1]")
        self.vlm, self.encoder, self.lora, self.init_adapter = vlm, encoder, lora, init_adapter
        self.encoder_lr_ratio, self.quantize = encoder_lr_ratio, quantize
        self.train_projector, self.train_encoder = train_projector, train_encoder
        self.gradient_checkpointing, self.distillation = gradient_checkpointing, distillation
        self.optimizer_settings = optimizer
        processors = load_processors(vlm, encoder)
        self.processor = processors[None]
        self.mode_processors = {mode: own for mode, own in processors.items() if mode is not None}
        self.objective: Objective = SupervisedFineTuning()
        self.memory = self._memory(summary=summary, learned_clips=learned_clips, qformer=qformer)
        if self.memory is not None:
            self.objective, self.processor = self.memory, self.memory.processor
        self.held_digest = ""  # of the frozen weights
        self.lengths = np.zeros(2, np.int64)  # of the step under way: tokens that are read, and padding
        self.origin: dict[str, str] = {}  # what the adapter will recognize its model by

    def _memory(self, **options: Any) -> MemoryTuning | None:
        """The objective of the memory that is trained for, given the options of all."""
        given = [name for name, settings in options.items() if settings is not None]
        if not given:
            return None
        if len(given) > 1:
            raise ValueError(f"model.{' and model.'.join(given)}: a run trains for one memory")
        (name,) = given
        if self.train_projector or self.train_encoder:
            raise ValueError(f"model.{name}: videos are encoded once, by a frozen encoder and projector")
        if self.mode_processors:
            raise ValueError(
                f"model.{name}: a video is of one compression, and {self.encoder} is elastic, with modes "
                f"{', '.join(self.mode_processors)}; take one out of it (liteframe extract)"
            )
        if self.distillation.weight:
            raise ValueError(f"model.{name} and model.distillation.weight: a run has one of them")
        return TUNINGS[name](options[name], self.processor)

    def configure_model(self) -> None:
        """Load the Video LLM, add LoRA, and say what will be trained.

        Raises:
            ValueError: the parts do not fit together, or the data are longer than the language model reads.
        """
        if hasattr(self, "model"):
            return
        data = self.data()
        if data.cache_features and (self.train_projector or self.train_encoder):
            raise ValueError("data.cache_features: features change while the encoder or the projector is trained")
        if data.tokens is not None and self.train_encoder:
            raise ValueError(
                "data.tokens: the tokens change while the encoder is trained; give the videos to such a run"
            )
        if self.distillation.weight and (data.tokens is not None or data.cache_features):
            option = "data.cache_features" if data.tokens is None else "data.tokens"
            raise ValueError(
                f"model.distillation: the teacher needs frames, which {option} does without; leave one out"
            )
        if data.context_parallel > 1:
            if self.train_encoder or self.distillation.weight or type(self.objective) is not SupervisedFineTuning:
                raise ValueError(
                    "data.context_parallel is for LMA with a frozen encoder; leave out model.train_encoder, "
                    "memories (model.summary, model.learned_clips, model.qformer), model.distillation and TPO's pairs"
                )
            data.shares = ContextShares(data.context_parallel)
        # Lightning makes the device of the run the default. What is rounded waits for it in main memory: the GPU that
        # 4 bits are for cannot hold it whole.
        with torch.device("cpu") if self.quantize == "nf4" else nullcontext():
            model = self._build_model()
        if data.shares is not None:
            self.objective = ContextParallelTuning(data.shares, self.model)
        if data.token_cache is not None:
            identity = encoder_identity(encoder_of(self.model), self.processor)
            data.token_cache.refuse_other("data.tokens", {**identity, "frames": tuple(data.frames), "fps": data.fps})
        limit = model.config.text_config.max_position_embeddings
        longest = 0
        for processor, frames in data.shown():
            room: tuple[Any, ...] = (frames, limit)
            if self.memory is not None:
                room = self.memory.room(limit, frames, self.trainer.strategy.root_device)
            longest = max(longest, check_lengths(data.conversations, processor, *room))
        keys = frozenset[str]() if self.memory is None else self.memory.keys
        unread = describe_unread(Counter({key: rows for key, rows in data.unread.items() if key not in keys}))
        lines = [
            describe(self.model),
            None if self.memory is None else self.memory.describe(self.model),
            f"a video of {max(data.frames)} frames{self._or_modes(data)} takes {longest:,} of the {limit:,} tokens "
            "that the language model reads",
            template_warning(self.processor),
            None if model.config.vision_config.encoder_config.deepstack else family_of(model.config.model_type).note,
            f"keys of rows that are not read, and rows that have them: {unread}" if unread else None,
        ]
        tell("\n".join(filter(None, lines)))

    def _or_modes(self, data: ChatDataModule) -> str:
        """How many frames it has in each mode of an elastic encoder."""
        counts = [f"{mode} {max(f)}" for mode, (_, f) in zip(self.mode_processors, data.shown(), strict=False)]
        return f" (drawn for each sample: {', '.join(counts)})" if counts else ""

    def _build_model(self) -> PreTrainedModel:
        """Make `self.model` on the default device; returns the Video LLM in it."""
        whole, processor = load_video_llm(self.vlm)
        model: Any = with_encoder(whole, self.encoder)
        self.origin = origin(model)
        model.config.use_cache = False
        if self.gradient_checkpointing and self.train_encoder:
            model.model.vision_tower.encoder.checkpoint_activations()
        own = None if self.memory is None else self.memory.memory
        if self.init_adapter is not None and trained_for(self.init_adapter) not in (None, own):
            check_trained_for(self.init_adapter, own)
        self.model = add_lora(
            model,
            self.lora,
            train_projector=self.train_projector,
            train_encoder=self.train_encoder,
            start_from=self.init_adapter,
        )
        if self.memory is not None:
            self.memory.begin(self.model, self.init_adapter, self.data().conversations)
        if self.distillation.weight:
            conversations, frames = self.data().conversations, self.distillation.frames
            teacher = DenseTeacher(whole, processor, self.model, conversations, frames)
            self.objective = LogitDistillation(self.distillation.weight, teacher)
            self.data().keeps_bytes = True
        # Lightning leaves modes as they are, and transformers checkpoints activations in training mode only.
        self.model.train()
        if self.gradient_checkpointing:
            model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self.held_digest = frozen_digest(self.model)
        start = None if self.init_adapter is None else self._adapter_digest(Path(self.init_adapter))
        self.contents = {"model.vlm, model.encoder": self.held_digest, "model.init_adapter": start}
        if self.quantize == "nf4":
            quantize_frozen(self.model, self.trainer.strategy.root_device)
            self.held_digest = frozen_digest(self.model)
        return model

    def save_with_adapter(self, folder: Path) -> dict[str, Any]:
        """Write into its folder what the adapter has besides; returns what it must note of that."""
        return save_part(self.model.get_base_model(), folder)

    @staticmethod
    def _adapter_digest(folder: Path) -> str:
        files = (ADAPTER_WEIGHTS, *(memory.weights for memory in TRAINED.values()))
        return " ".join(file_digest(folder / name) for name in files if (folder / name).exists())

    def configure_optimizers(self) -> Any:
        """Linear warm-up, cosine; a trained encoder learns more slowly."""
        steps = total_steps(self.trainer)
        return configure_optimizer(self.model, self.optimizer_settings, steps, {ENCODER: self.encoder_lr_ratio})

    def on_train_batch_start(self, batch: ChatBatch, batch_idx: int) -> None:
        """Make LoRA's dropout a function of seed and position, so that a resumed run continues the same one."""
        position = [self.data().seed, self.global_step, len(self.micro_batches), self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0]))
        if self.memory is not None:
            self.memory.progress = self.global_step / total_steps(self.trainer)

    @override
    def step_loss(self, batch: ChatBatch) -> tuple[Tensor, dict[str, Tensor]]:
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if self.global_rank % self.data().context_parallel == 0:  # else another has counted them
            self.lengths += batch.tokens, batch.input_ids.numel() - batch.tokens
        if not batch.keys:
            return zero_of(p for _, p in named), {}
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": self._attention_mask(batch),
            "placeholders": batch.placeholders,
            "use_cache": False,
        }
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        loss, logits = self.objective.loss(self.model, inputs | self._videos(batch), batch)
        if not batch.media_keys and (self.train_projector or self.train_encoder):
            loss = loss + zero_of(p for name, p in named if ".lora_" not in name)
        # Frames of several sizes are watched by a number of each video.
        frames = torch.stack([video.sum() for video in pixels]) if isinstance(pixels := batch.pixels, list) else pixels
        frames = frames if batch.grids is None else batch.grids
        return loss, {"frames": frames, "prediction": logits}

    @override
    def clips(self, batch: ChatBatch) -> list[dict[str, Any]]:
        paths = iter(path for path, _ in batch.media_keys)
        media = [[next(paths) for _ in range(count)] for count in batch.media_counts]
        return [{"key": list(key), "path": ", ".join(p)} for key, p in zip(batch.keys, media, strict=True)]

    @override
    def finish_gradients(self, parameters: Sequence[Tensor], micro_batches: int) -> dict[str, float]:
        all_reduce = partial(self.trainer.strategy.reduce, reduce_op="sum")
        figures = self.objective.normalize(parameters, micro_batches, all_reduce)
        read, padding = sum_over_ranks(self.trainer, self.lengths.tolist())
        self.lengths[:] = 0
        return {**figures, "train/padding": self.data().count_tokens(read, padding)} if figures else figures

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trained weights only: the Video LLM stays where it came from."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the trained weights; `on_load_checkpoint` has compared them."""
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def facts(self) -> dict[str, Any]:
        """What report.json says of the objective."""
        memory = {} if self.memory is None else {self.memory.memory: asdict(self.memory.settings)}
        return memory | ({"distillation": vars(self.distillation)} if self.distillation.weight else {})

    def _attention_mask(self, batch: ChatBatch) -> Tensor | dict[str, None]:
        """What the language model may attend to.

        Rows are padded on the right, so causal attention alone keeps padding from all that is learned. Given a mask,
        transformers reads from the device whether it hides anything, and if so makes one of L x L, which flash
        attention and grouped queries do without; given a mask for each kind of layer, it takes these.
        """
        causal = takes_causal_masks(self.model.get_base_model().model.language_model.config)
        return {FULL: None} if causal else batch.attention_mask

    def _videos(self, batch: ChatBatch) -> dict[str, Any]:
        """What the Video LLM reads of the batch's videos: features, or pixels where their encoding is learned."""
        if not batch.media_keys:
            return {}
        model, cache = self.model.get_base_model().model, self.data().feature_cache
        learned = self.train_projector or self.train_encoder
        if learned and batch.modes is None and not batch.grid_shapes and self.data().shares is None:
            return {"pixel_values_videos": batch.pixels, "video_frames": batch.video_frames}
        # Kept or not: with gradients on, the convolutions add in another order.
        with nullcontext() if learned else torch.no_grad():
            if batch.grid_shapes:
                features = model.project_grids(batch.media_grids)
            elif cache is None:
                features = model.get_video_features(batch.pixels, batch.video_frames, modes=batch.modes)
            else:
                features = cache.features(model, batch)
        return {"mm_encoder_outputs": {"video": features}}

    @override
    def data(self) -> ChatDataModule:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ChatDataModule):
            raise ValueError("LMAModule needs a ChatDataModule: pass it to the trainer as datamodule=")
        return data
