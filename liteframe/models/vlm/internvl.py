"""InternVL with a LiteFrame encoder in place of its vision tower: config, model, head and processor.

transformers' `InternVLConfig` pins the tower to InternViT: a foreign tower in it is rebuilt with random weights by
`from_pretrained`. Hence `liteframe_internvl`, whose config names our vision config and whose loading is strict.
Where InternVL's own prompt has a line `Frame{i}: <img>..</img>` a frame, ours has one a slot: `Frame{a}-{b}: <img>` + n
image tokens + `</img>`, n = 64 at 448 pixels.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    InternVLConfig,
)
from transformers.generation import GenerationMixin
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLModelOutputWithPast,
    InternVLMultiModalProjector,
    InternVLPreTrainedModel,
)

from liteframe.models.vlm.base import VlmBackbone, VlmForGeneration
from liteframe.models.vlm.processor import LiteFrameProcessor, Times
from liteframe.models.vlm.vision import StrictLoading, as_vision_config, own_sub_configs


class LiteFrameInternVLConfig(InternVLConfig):
    """InternVLConfig whose `vision_config` is a LiteFrameVisionConfig."""

    model_type = "liteframe_internvl"
    # One name up to transformers 5.1x, the other from 5.2x on; each version reads its own.
    if hasattr(InternVLConfig, "sub_configs_defaults"):
        sub_configs_defaults = own_sub_configs(InternVLConfig.sub_configs_defaults)
    else:
        sub_configs = own_sub_configs(InternVLConfig.sub_configs)

    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the vision config from whatever form it came in."""
        self.vision_config = as_vision_config(self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def video_token_id(self) -> int:
        """Videos and images share one placeholder token."""
        return self.image_token_id


def pixel_shuffle(features: Tensor, factor: int = 2) -> Tensor:
    """Move each factor x factor block of tokens into channels: [...,h,w,C] -> [...,h/f,w/f,f*f*C], any h and w.

    Channel order as InternVL's "v2": row offset, column offset, channel.

    Raises:
        ValueError: factor does not divide h or w.
    """
    height, width = features.shape[-3:-1]
    if height % factor or width % factor:
        raise ValueError(f"a {height}x{width} token grid cannot be shuffled {factor}x{factor}; resize the frames")
    blocks = features.unflatten(-2, (width // factor, factor))  # [...,h,w/f,f,C]
    blocks = blocks.unflatten(-4, (height // factor, factor))  # [...,h/f,f,w/f,f,C]
    return blocks.movedim(-4, -3).flatten(-3)  # [...,h/f,w/f,f*f*C]


def shuffle_factor(downsample_ratio: float) -> int:
    """Patches per side that a `downsample_ratio` moves into channels (0.5 -> 2).

    Raises:
        ValueError: the ratio is not one over an integer.
    """
    factor = round(1 / downsample_ratio) if downsample_ratio > 0 else 0
    if factor < 1 or not math.isclose(1 / factor, downsample_ratio):
        raise ValueError(f"downsample_ratio={downsample_ratio} is not 1/n for a whole n")
    return factor


class LiteFrameInternVLModel(VlmBackbone, InternVLPreTrainedModel):
    """LiteFrame encoder, InternVL's projector and language model, without the language model's head."""

    config_class = LiteFrameInternVLConfig
    config: LiteFrameInternVLConfig
    output_class = InternVLModelOutputWithPast

    def add_projector(self, config: Any) -> None:
        """Set what lies between vision tower and language model."""
        self.multi_modal_projector = InternVLMultiModalProjector(config)

    def merge_patches(self, grid: Tensor) -> Tensor:
        """Pixel shuffle: [T',h,w,C] -> [T',h/f,w/f,f*f*C]."""
        return pixel_shuffle(grid, shuffle_factor(self.config.downsample_ratio))


class LiteFrameInternVLForConditionalGeneration(
    VlmForGeneration, StrictLoading, InternVLPreTrainedModel, GenerationMixin
):
    """InternVL with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameInternVLConfig
    config: LiteFrameInternVLConfig
    output_class = InternVLCausalLMOutputWithPast
    backbone_class = LiteFrameInternVLModel


class LiteFrameInternVLProcessor(LiteFrameProcessor):
    """Prompts of an InternVL with a LiteFrame encoder.

    Args:
        tokenizer: InternVL's, with its named image and video tokens.
        video_processor: InternVL's; its own size, mean and std are used, never class defaults.
        chat_template: ChatML, where a video of a turn is `<video>`.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for (56 = patch 14, stride 2,
            pixel shuffle 2).
        resize: "squash", "crop" or "aspect", see LiteFrameProcessor.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = None,
        frames_per_slot: int = 4,
        pixels_per_token: int = 56,
        resize: str = "squash",
    ):
        super().__init__(tokenizer, video_processor, chat_template=chat_template)
        self.frames_per_slot = frames_per_slot
        self.pixels_per_token = pixels_per_token
        self.resize = resize
        self.image_token = tokenizer.context_image_token
        self.image_token_id = tokenizer.context_image_token_id
        self.video_token = tokenizer.video_token
        self.start_image_token = tokenizer.start_image_token
        self.end_image_token = tokenizer.end_image_token

    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """A line for each slot that has tokens, with the numbers of its frames from 1 on."""
        lines = [f"Frame{a + 1}-{b + 1}: {self.image_text(tokens)}" for a, b, tokens in slots if tokens]
        return "\n".join(lines)

    def image_text(self, tokens: int) -> str:
        """Image tokens between InternVL's marks."""
        return f"{self.start_image_token}{self.image_token * tokens}{self.end_image_token}"


AutoConfig.register(LiteFrameInternVLConfig.model_type, LiteFrameInternVLConfig, exist_ok=True)
AutoModel.register(LiteFrameInternVLConfig, LiteFrameInternVLModel, exist_ok=True)
AutoModelForImageTextToText.register(LiteFrameInternVLConfig, LiteFrameInternVLForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(LiteFrameInternVLConfig, LiteFrameInternVLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LiteFrameInternVLConfig, LiteFrameInternVLProcessor, exist_ok=True)
