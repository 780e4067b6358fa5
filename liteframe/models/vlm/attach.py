"""Put an encoder into a Video LLM that is in memory.

Shapes: [V,T,3,H,W] videos -> [V,ceil(T/t),h,w,C] features, C the width of the vision tower that is replaced.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.vision import LiteFrameVisionConfig, LiteFrameVisionModel


class InMemoryTower(nn.Module):
    """Any module [V,T,3,H,W] -> [V,ceil(T/t),h,w,C] behind the interface of LiteFrameVisionModel; not savable."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixel_values_videos: Tensor, **kwargs: Any) -> BaseModelOutput:
        """[V,T,3,H,W] -> last_hidden_state [V,ceil(T/t),h,w,C]."""
        return BaseModelOutput(last_hidden_state=self.encoder(pixel_values_videos))


def attach_encoder(vlm: Any, encoder: nn.Module, *, config: LiteFrameConfig | None = None) -> Any:
    """A Video LLM whose images go through `encoder`; language model, projector and head are those of `vlm`, shared.

    Args:
        vlm: an ordinary transformers model of a known family (see family.py); its vision tower is left out.
        encoder: a LiteFrameEncoder, or any module [V,T,3,H,W] -> [V,ceil(T/t),h,w,C] (then `config` is needed, and
            the result works in memory only: saving it raises ValueError).
        config: describes the grid of a foreign encoder: downsample, patch_size, image_size, clip_frames, teacher_dim.

    Raises:
        ValueError: the encoder's width is not what the projector takes, or a foreign encoder came without config.
    """
    if isinstance(encoder, LiteFrameEncoder):
        config = encoder.config
    if config is None:
        raise ValueError(f"attach_encoder: pass config= with a {type(encoder).__name__}: it does not describe its grid")
    wanted = vlm.config.vision_config.hidden_size
    if config.teacher_dim != wanted:
        raise ValueError(
            f"the encoder emits {config.teacher_dim} channels, but the projector of this Video LLM takes {wanted}; "
            "use an encoder distilled from this model's own vision tower"
        )
    family = family_of(vlm.config.model_type)
    values = vlm.config.to_dict()
    values["vision_config"] = LiteFrameVisionConfig(**config.to_dict())
    values["text_config"] = vlm.config.text_config
    for name in ("model_type", "architectures", "transformers_version", "_name_or_path"):
        values.pop(name, None)
    if "image_seq_length" in values:
        values["image_seq_length"] = _tokens_per_slot(config, family.merge_factor(vlm.config))
    full: Any = family.config_class(**values)
    with torch.device("meta"):
        model = family.generation_class(full)
        tower = LiteFrameVisionModel(full.vision_config)
    if isinstance(encoder, LiteFrameEncoder):
        tower.encoder = encoder
        model.model.vision_tower = tower
    else:
        model.model.vision_tower = InMemoryTower(encoder)
    parts = family.parts(vlm)
    model.model.multi_modal_projector = parts.projector
    model.model.language_model = parts.language_model
    for name, parameter in parts.own.items():
        setattr(model.model, name, parameter)
    model.lm_head = parts.head
    model.generation_config = vlm.generation_config
    return model.train(vlm.training)


def _tokens_per_slot(config: LiteFrameConfig, merge_factor: int) -> int:
    _, h, w = config.compression
    side = config.image_size // config.patch_size
    return (side // h // merge_factor) * (side // w // merge_factor)
