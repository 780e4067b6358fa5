"""LLaVA-OneVision with a LiteFrame encoder in place of its SigLIP tower, as transformers classes of their own type.

The encoder's grid replaces both the tower's and the 2 x 2 pooling that LLaVA-OneVision applies to video frames; a video
ends with the model's own newline vector, as there. Images and videos share one placeholder token.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, LlavaOnevisionConfig
from transformers.generation import GenerationMixin
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionCausalLMOutputWithPast,
    LlavaOnevisionModelOutputWithPast,
    LlavaOnevisionMultiModalProjector,
    LlavaOnevisionPreTrainedModel,
)

from liteframe.models.vlm.base import VideoLanguageModel, VideoModel
from liteframe.models.vlm.vision import LiteFrameVisionModel, StrictLoading, as_vision_config, own_sub_configs


class LiteFrameLlavaOnevisionConfig(LlavaOnevisionConfig):
    """LlavaOnevisionConfig whose `vision_config` is a LiteFrameVisionConfig."""

    model_type = "liteframe_llava_onevision"
    # One name up to transformers 5.1x, the other from 5.2x on; each version reads its own.
    if hasattr(LlavaOnevisionConfig, "sub_configs_defaults"):
        sub_configs_defaults = own_sub_configs(LlavaOnevisionConfig.sub_configs_defaults)
    else:
        sub_configs = own_sub_configs(LlavaOnevisionConfig.sub_configs)

    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the vision config from whatever form it came in."""
        self.vision_config = as_vision_config(self.vision_config)
        super().__post_init__(**kwargs)


class LiteFrameLlavaOnevisionModel(VideoModel, LlavaOnevisionPreTrainedModel):
    """LiteFrame encoder, LLaVA-OneVision's projector and language model, without the language model's head."""

    config_class = LiteFrameLlavaOnevisionConfig
    config: LiteFrameLlavaOnevisionConfig
    output_class = LlavaOnevisionModelOutputWithPast

    def __init__(self, config: LiteFrameLlavaOnevisionConfig):
        super().__init__(config)
        self.vision_tower = LiteFrameVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = LlavaOnevisionMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def fold(self, grid: Tensor) -> Tensor:
        """Token by token."""
        return grid.flatten(0, 2)

    def ending(self) -> Tensor:
        """The newline vector."""
        return self.image_newline[None]


class LiteFrameLlavaOnevisionForConditionalGeneration(
    VideoLanguageModel, StrictLoading, LlavaOnevisionPreTrainedModel, GenerationMixin
):
    """LLaVA-OneVision with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameLlavaOnevisionConfig
    config: LiteFrameLlavaOnevisionConfig
    output_class = LlavaOnevisionCausalLMOutputWithPast
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LiteFrameLlavaOnevisionConfig):
        super().__init__(config)
        self.model = LiteFrameLlavaOnevisionModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LiteFrameLlavaOnevisionConfig.model_type, LiteFrameLlavaOnevisionConfig, exist_ok=True)
AutoModel.register(LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionModel, exist_ok=True)
AutoModelForImageTextToText.register(
    LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionForConditionalGeneration, exist_ok=True
)
