"""Qwen3-VL with a LiteFrame encoder in place of its tower: config, model, head and processor (arXiv 2511.21631).

Its tower hands features of three inner blocks to the first layers of the language model (deepstack); a student gives
those of the last block alone, and the language model learns in LMA to do without the rest. Each slot of a prompt stands
by itself, behind its time.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from typing import Any

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


class LiteFrameQwen3VLModel(QwenBackbone, Qwen3VLPreTrainedModel):
    """LiteFrame encoder, Qwen3-VL's merger and language model, without the language model's head."""

    config_class = LiteFrameQwen3VLConfig
    config: LiteFrameQwen3VLConfig
    output_class = BaseModelOutputWithPast

    @override
    def add_projector(self, config: Any) -> None:
        """Set the merger."""
        self.multi_modal_projector = Qwen3VLVisionPatchMerger(config.vision_config)


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
