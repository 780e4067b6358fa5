"""Qwen3.5 with a LiteFrame encoder in place of its tower: config, model, head and processor.

Most layers of its language model keep a state instead of keys and values (Gated DeltaNet, arXiv 2412.06464), so long
prompts cost it little. Each slot stands by itself in the prompt, behind its time.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Qwen3_5Config,
    Qwen3_5PreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5VisionPatchMerger
from typing_extensions import override

from liteframe.models.vlm.base import VlmForGeneration
from liteframe.models.vlm.qwen import QwenBackbone, TimedTextProcessor
from liteframe.models.vlm.vision import StrictLoading, as_vision_config, own_sub_configs


class LiteFrameQwen3_5Config(Qwen3_5Config):  # transformers' own name with ours before it
    """Qwen3_5Config whose `vision_config` is a LiteFrameVisionConfig, with what it keeps of the tower's."""

    model_type = "liteframe_qwen3_5"
    # One name up to transformers 5.1x, the other from 5.2x on; each version reads its own.
    if hasattr(Qwen3_5Config, "sub_configs_defaults"):
        sub_configs_defaults = own_sub_configs(Qwen3_5Config.sub_configs_defaults)
    else:
        sub_configs = own_sub_configs(Qwen3_5Config.sub_configs)

    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the vision config from whatever form it came in."""
        self.vision_config = as_vision_config(self.vision_config)
        super().__post_init__(**kwargs)
        self.video_token_id = self.image_token_id  # generate looks for it where it cuts a prompt into chunks


class LiteFrameQwen3_5Model(QwenBackbone, Qwen3_5PreTrainedModel):
    """LiteFrame encoder, Qwen3.5's merger and language model, without the language model's head."""

    config_class = LiteFrameQwen3_5Config
    config: LiteFrameQwen3_5Config
    output_class = BaseModelOutputWithPast

    @override
    def add_projector(self, config: Any) -> None:
        """Set the merger."""
        self.multi_modal_projector = Qwen3_5VisionPatchMerger(config.vision_config)


class LiteFrameQwen3_5ForConditionalGeneration(
    VlmForGeneration, StrictLoading, Qwen3_5PreTrainedModel, GenerationMixin
):
    """Qwen3.5 with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameQwen3_5Config
    config: LiteFrameQwen3_5Config
    output_class = CausalLMOutputWithPast
    backbone_class = LiteFrameQwen3_5Model


class LiteFrameQwen3_5Processor(TimedTextProcessor):
    """Prompts of a Qwen3.5 with a LiteFrame encoder."""


AutoConfig.register(LiteFrameQwen3_5Config.model_type, LiteFrameQwen3_5Config, exist_ok=True)
AutoModel.register(LiteFrameQwen3_5Config, LiteFrameQwen3_5Model, exist_ok=True)
AutoModelForImageTextToText.register(LiteFrameQwen3_5Config, LiteFrameQwen3_5ForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(LiteFrameQwen3_5Config, LiteFrameQwen3_5ForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LiteFrameQwen3_5Config, LiteFrameQwen3_5Processor, exist_ok=True)
