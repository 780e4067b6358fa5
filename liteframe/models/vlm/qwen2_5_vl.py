"""Qwen2.5-VL with a LiteFrame encoder in place of its tower: config, model, head and processor (arXiv 2502.13923).

A video is one block of slots; its time axis counts seconds.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from collections.abc import Sequence
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLPreTrainedModel,
)
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from typing_extensions import override

from liteframe.models.vlm.base import VlmForGeneration
from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.processor import Times
from liteframe.models.vlm.qwen import CHATML, END, PAD, START, QwenBackbone, QwenProcessor
from liteframe.models.vlm.vision import StrictLoading, as_vision_config, own_sub_configs

TOKENS_PER_SECOND = 2.0  # positions, in the released checkpoints


class LiteFrameQwen2_5_VLConfig(Qwen2_5_VLConfig):  # transformers' own name with ours before it
    """Qwen2_5_VLConfig whose `vision_config` is a LiteFrameVisionConfig, with what it keeps of the tower's."""

    model_type = "liteframe_qwen2_5_vl"
    # One name up to transformers 5.1x, the other from 5.2x on; each version reads its own.
    if hasattr(Qwen2_5_VLConfig, "sub_configs_defaults"):
        sub_configs_defaults = own_sub_configs(Qwen2_5_VLConfig.sub_configs_defaults)
    else:
        sub_configs = own_sub_configs(Qwen2_5_VLConfig.sub_configs)

    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Build the vision config from whatever form it came in."""
        self.vision_config = as_vision_config(self.vision_config)
        super().__post_init__(**kwargs)
        self.video_token_id = self.image_token_id  # generate looks for it where it cuts a prompt into chunks


class LiteFrameQwen2_5_VLModel(QwenBackbone, Qwen2_5_VLPreTrainedModel):
    """LiteFrame encoder, Qwen2.5-VL's merger and language model, without the language model's head."""

    config_class = LiteFrameQwen2_5_VLConfig
    config: LiteFrameQwen2_5_VLConfig
    output_class = BaseModelOutputWithPast

    @override
    def add_projector(self, config: Any) -> None:
        """Set the merger."""
        vision = config.vision_config
        self.multi_modal_projector = Qwen2_5_VLPatchMerger(
            config.text_config.hidden_size, vision.hidden_size, vision.spatial_merge_size
        )


class LiteFrameQwen2_5_VLForConditionalGeneration(
    VlmForGeneration, StrictLoading, Qwen2_5_VLPreTrainedModel, GenerationMixin
):
    """Qwen2.5-VL with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameQwen2_5_VLConfig
    config: LiteFrameQwen2_5_VLConfig
    output_class = CausalLMOutputWithPast
    backbone_class = LiteFrameQwen2_5_VLModel


class LiteFrameQwen2_5_VLProcessor(QwenProcessor):
    """Prompts of a Qwen2.5-VL with a LiteFrame encoder.

    Args:
        tokenizer: as QwenProcessor, like the next five.
        video_processor: see there.
        chat_template: see there.
        frames_per_slot: see there.
        pixels_per_token: see there.
        resize: see there.
        tokens_per_second: positions a second on the time axis.
    """

    closing = END

    def __init__(
        self,
        tokenizer: Any = None,
        video_processor: Any = None,
        chat_template: str | None = CHATML,
        frames_per_slot: int = 4,
        pixels_per_token: int = 56,
        resize: str = "squash",
        tokens_per_second: float = TOKENS_PER_SECOND,
    ):
        super().__init__(tokenizer, video_processor, chat_template, frames_per_slot, pixels_per_token, resize)
        self.tokens_per_second = tokens_per_second

    @property
    @override
    def mrope(self) -> Mrope:  # type: ignore[override]
        """Positions on the time axis count seconds."""
        return Mrope(self.tokens_per_second)

    @override
    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """The image tokens of all slots between the marks of vision."""
        tokens = sum(tokens for _, _, tokens in slots)
        return f"{START}{PAD * tokens}{END}" if tokens else ""


AutoConfig.register(LiteFrameQwen2_5_VLConfig.model_type, LiteFrameQwen2_5_VLConfig, exist_ok=True)
AutoModel.register(LiteFrameQwen2_5_VLConfig, LiteFrameQwen2_5_VLModel, exist_ok=True)
AutoModelForImageTextToText.register(
    LiteFrameQwen2_5_VLConfig, LiteFrameQwen2_5_VLForConditionalGeneration, exist_ok=True
)
AutoModelForMultimodalLM.register(LiteFrameQwen2_5_VLConfig, LiteFrameQwen2_5_VLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LiteFrameQwen2_5_VLConfig, LiteFrameQwen2_5_VLProcessor, exist_ok=True)
