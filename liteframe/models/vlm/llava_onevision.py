"""LLaVA-OneVision with a LiteFrame encoder in place of its SigLIP tower: config, model, head and processor.

The encoder's grid replaces both the tower's and the 2 x 2 pooling that LLaVA-OneVision applies to video frames; a video
ends with the model's own newline vector, as there. Images and videos share one placeholder token.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlavaOnevisionConfig,
)
from transformers.generation import GenerationMixin
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionCausalLMOutputWithPast,
    LlavaOnevisionModelOutputWithPast,
    LlavaOnevisionMultiModalProjector,
    LlavaOnevisionPreTrainedModel,
)

from liteframe.models.vlm.base import VlmBackbone, VlmForGeneration
from liteframe.models.vlm.processor import LiteFrameProcessor, Times
from liteframe.models.vlm.vision import StrictLoading, as_vision_config, own_sub_configs

# As the conversations that LLaVA-OneVision was trained on, and as LMA writes them.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% elif part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
        self.video_token_index = self.image_token_index  # generate looks for it where it cuts a prompt into chunks


class LiteFrameLlavaOnevisionModel(VlmBackbone, LlavaOnevisionPreTrainedModel):
    """LiteFrame encoder, LLaVA-OneVision's projector and language model, without the language model's head."""

    config_class = LiteFrameLlavaOnevisionConfig
    config: LiteFrameLlavaOnevisionConfig
    output_class = LlavaOnevisionModelOutputWithPast

    def add_projector(self, config: Any) -> None:
        """Set what lies between vision tower and language model."""
        self.multi_modal_projector = LlavaOnevisionMultiModalProjector(config)
        self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))

    def merge_patches(self, grid: Tensor) -> Tensor:
        """Each patch is a token of its own: [T',h,w,C] as it is."""
        return grid

    def end_embedding(self) -> Tensor:
        """The newline vector [1, text hidden size]."""
        return self.image_newline[None]


class LiteFrameLlavaOnevisionForConditionalGeneration(
    VlmForGeneration, StrictLoading, LlavaOnevisionPreTrainedModel, GenerationMixin
):
    """LLaVA-OneVision with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameLlavaOnevisionConfig
    config: LiteFrameLlavaOnevisionConfig
    output_class = LlavaOnevisionCausalLMOutputWithPast
    backbone_class = LiteFrameLlavaOnevisionModel


class LiteFrameLlavaOnevisionProcessor(LiteFrameProcessor):
    """Prompts of a LLaVA-OneVision with a LiteFrame encoder.

    Args:
        tokenizer: LLaVA-OneVision's, which knows the tokens `<image>` and `<video>`.
        video_processor: LLaVA-OneVision's, resizing to the encoder's frame size.
        chat_template: ChatML, where a video of a turn is `<video>`.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for (28 = patch 14, stride 2).
        resize: "squash", "crop" or "aspect", see LiteFrameProcessor.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = CHATML,
        frames_per_slot: int = 4,
        pixels_per_token: int = 28,
        resize: str = "squash",
    ):
        super().__init__(tokenizer, video_processor, chat_template=chat_template)
        self.frames_per_slot = frames_per_slot
        self.pixels_per_token = pixels_per_token
        self.resize = resize
        self.image_token, self.video_token = "<image>", "<video>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """The image tokens of all slots, and one for the newline vector."""
        return self.image_token * (sum(tokens for _, _, tokens in slots) + 1)

    def image_text(self, tokens: int) -> str:
        """Image tokens and one for the newline vector: an image is a video of one frame."""
        return self.image_token * (tokens + 1)


AutoConfig.register(LiteFrameLlavaOnevisionConfig.model_type, LiteFrameLlavaOnevisionConfig, exist_ok=True)
AutoModel.register(LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionModel, exist_ok=True)
AutoModelForImageTextToText.register(
    LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionForConditionalGeneration, exist_ok=True
)
AutoModelForMultimodalLM.register(
    LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionForConditionalGeneration, exist_ok=True
)
AutoProcessor.register(LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionProcessor, exist_ok=True)
