"""InternVL with a LiteFrame encoder in place of its vision tower, as transformers classes of their own model type.

transformers' `InternVLConfig` pins the tower to InternViT: a foreign tower in it is rebuilt with random weights by
`from_pretrained`. Hence `liteframe_internvl`, whose config names our vision config and whose loading is strict.
This file travels inside exported models: it imports torch, transformers and the encoder, nothing else.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, InternVLConfig
from transformers.generation import GenerationMixin
from transformers.models.internvl.modeling_internvl import (
    InternVLCausalLMOutputWithPast,
    InternVLModelOutputWithPast,
    InternVLMultiModalProjector,
    InternVLPreTrainedModel,
)

from liteframe.models.vlm.base import VideoLanguageModel, VideoModel
from liteframe.models.vlm.vision import LiteFrameVisionModel, StrictLoading, as_vision_config, own_sub_configs


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
    blocks = features.unflatten(-2, (width // factor, factor)).unflatten(-4, (height // factor, factor))
    return blocks.movedim(-4, -3).flatten(-3)


class LiteFrameInternVLModel(VideoModel, InternVLPreTrainedModel):
    """LiteFrame encoder, InternVL's projector and language model, without the language model's head."""

    config_class = LiteFrameInternVLConfig
    config: LiteFrameInternVLConfig
    output_class = InternVLModelOutputWithPast

    def __init__(self, config: LiteFrameInternVLConfig):
        super().__init__(config)
        self.vision_tower = LiteFrameVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def fold(self, grid: Tensor) -> Tensor:
        """Pixel shuffle."""
        return pixel_shuffle(grid, round(1 / self.config.downsample_ratio)).flatten(0, 2)


class LiteFrameInternVLForConditionalGeneration(
    VideoLanguageModel, StrictLoading, InternVLPreTrainedModel, GenerationMixin
):
    """InternVL with a LiteFrame encoder: answers text about videos."""

    config_class = LiteFrameInternVLConfig
    config: LiteFrameInternVLConfig
    output_class = InternVLCausalLMOutputWithPast
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LiteFrameInternVLConfig):
        super().__init__(config)
        self.model = LiteFrameInternVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LiteFrameInternVLConfig.model_type, LiteFrameInternVLConfig, exist_ok=True)
AutoModel.register(LiteFrameInternVLConfig, LiteFrameInternVLModel, exist_ok=True)
AutoModelForImageTextToText.register(LiteFrameInternVLConfig, LiteFrameInternVLForConditionalGeneration, exist_ok=True)
