"""Qwen3-VL with a LiteFrame encoder in place of its tower: config, model, head and processor (arXiv 2511.21631).

Its tower hands features of three inner blocks to the first layers of the language model (deepstack, arXiv 2406.04334).
A student gives those of the last block alone, and the language model learns in LMA to do without the rest; or it has
been distilled with deepstack and gives them in further channels of its tokens, where they stay through mergers,
sessions and memories up to the language model. Each slot of a prompt stands by itself, behind its time.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Qwen3VLConfig,
    Qwen3VLPreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger
from typing_extensions import override

from liteframe.models.vlm.base import VlmForGeneration
from liteframe.models.vlm.qwen import QwenBackbone, TimedTextProcessor
from liteframe.models.vlm.vision import StrictLoading, as_vision_config, own_sub_configs


class LiteFrameQwen3VLConfig(Qwen3VLConfig):
    """Qwen3VLConfig whose `vision_config` is a LiteFrameVisionConfig, with what it keeps of the tower's."""

    model_type = "liteframe_qwen3_vl"
    # One name up to transformers 5.1x, the other from 5.2x on; each version reads its own.
    if hasattr(Qwen3VLConfig, "sub_configs_defaults"):
        sub_configs_defaults = own_sub_configs(Qwen3VLConfig.sub_configs_defaults)
    else:
        sub_configs = own_sub_configs(Qwen3VLConfig.sub_configs)

    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the vision config from whatever form it came in."""
        self.vision_config = as_vision_config(self.vision_config)
        super().__post_init__(**kwargs)
        self.video_token_id = self.image_token_id  # generate looks for it where it cuts a prompt into chunks


class DeepstackMergers(nn.ModuleList):
    """The merger, and those of the inner blocks in the order of the blocks, as one projector."""

    @classmethod
    def of(cls, tower: Any) -> "DeepstackMergers":
        """Those of transformers' tower."""
        order = sorted(range(len(tower.deepstack_merger_list)), key=lambda n: tower.deepstack_visual_indexes[n])
        return cls([tower.merger, *(tower.deepstack_merger_list[n] for n in order)])

    def forward(self, blocks: Tensor) -> Tensor:
        """Blocks of patches [...,m*m,n*C], C channels a merger -> [N,n*D]."""
        parts = blocks.chunk(len(self), -1)
        return torch.cat([merger(part.contiguous()) for merger, part in zip(self, parts, strict=True)], -1)


def split_deepstack(language_model: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A hook before a language model: of embeddings [B,L,n*D], what is read first and what its layers add after them.

    Where there is text, zeros are added, which is nothing.
    """
    embeddings, width = kwargs.get("inputs_embeds"), language_model.config.hidden_size
    if embeddings is None or embeddings.shape[-1] == width:
        return None
    first, *others = embeddings.split(width, -1)
    added = {
        "visual_pos_masks": torch.ones(first.shape[:2], dtype=torch.bool, device=first.device),
        "deepstack_visual_embeds": [other.flatten(0, 1) for other in others],  # each [B*L,D]
    }
    return args, {**kwargs, "inputs_embeds": first.contiguous(), **added}


def read_deepstack(language_model: nn.Module) -> None:
    """Let a language model take wide embeddings apart; it may be told so several times."""
    if split_deepstack not in language_model._forward_pre_hooks.values():
        language_model.register_forward_pre_hook(split_deepstack, with_kwargs=True)


class LiteFrameQwen3VLModel(QwenBackbone, Qwen3VLPreTrainedModel):
    """LiteFrame encoder, Qwen3-VL's merger and language model, without the language model's head."""

    config_class = LiteFrameQwen3VLConfig
    config: LiteFrameQwen3VLConfig
    output_class = BaseModelOutputWithPast

    @override
    def add_projector(self, config: Any) -> None:
        """Set the merger, or with deepstack all of them."""
        vision = config.vision_config
        merger = Qwen3VLVisionPatchMerger(vision)
        inner = [
            Qwen3VLVisionPatchMerger(vision, use_postshuffle_norm=True) for _ in range(vision.encoder_config.deepstack)
        ]
        self.multi_modal_projector = DeepstackMergers([merger, *inner]) if inner else merger

    @override
    def take_language_model(self, language_model: nn.Module) -> None:
        """Set it; it takes wide embeddings apart."""
        self.language_model = language_model
        read_deepstack(language_model)


class LiteFrameQwen3VLForConditionalGeneration(
    VlmForGeneration, StrictLoading, Qwen3VLPreTrainedModel, GenerationMixin
):
    """Qwen3-VL with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameQwen3VLConfig
    config: LiteFrameQwen3VLConfig
    output_class = CausalLMOutputWithPast
    backbone_class = LiteFrameQwen3VLModel


class LiteFrameQwen3VLProcessor(TimedTextProcessor):
    """Prompts of a Qwen3-VL with a LiteFrame encoder."""


AutoConfig.register(LiteFrameQwen3VLConfig.model_type, LiteFrameQwen3VLConfig, exist_ok=True)
AutoModel.register(LiteFrameQwen3VLConfig, LiteFrameQwen3VLModel, exist_ok=True)
AutoModelForImageTextToText.register(LiteFrameQwen3VLConfig, LiteFrameQwen3VLForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(LiteFrameQwen3VLConfig, LiteFrameQwen3VLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LiteFrameQwen3VLConfig, LiteFrameQwen3VLProcessor, exist_ok=True)
