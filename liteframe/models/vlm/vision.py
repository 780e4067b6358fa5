"""A LiteFrame encoder as a transformers model of type `liteframe_vision`, so that transformers saves and loads it.

Travels inside exported models: imports torch, transformers and the student, nothing else.
"""

import json
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.inference import normalized

ENCODER_FIELDS = tuple(field.name for field in fields(LiteFrameConfig))


class LiteFrameVisionConfig(PreTrainedConfig):
    """The fields of LiteFrameConfig as a transformers config; reads an encoder folder's config.json as it is."""

    model_type = "liteframe_vision"
    base_config_key = "vision_config"

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the encoder's fields, and complete them with its defaults."""
        given = {name: kwargs.pop(name) for name in ENCODER_FIELDS if name in kwargs}
        # Through JSON, so that a config in memory equals the same config read from a file.
        values = json.loads(json.dumps(LiteFrameConfig.from_dict(given).to_dict()))
        super().__post_init__(**kwargs, **{name: values[name] for name in ENCODER_FIELDS})

    @property
    def encoder_config(self) -> LiteFrameConfig:
        """The encoder's own configuration."""
        return LiteFrameConfig.from_dict({name: getattr(self, name) for name in ENCODER_FIELDS})

    @property
    def hidden_size(self) -> int:
        """Channels of the output features, without those of inner blocks (deepstack)."""
        return self.encoder_config.teacher_dim // (1 + self.encoder_config.deepstack)


def own_sub_configs(declared: dict[str, Any]) -> dict[str, Any]:
    """A family's table of sub configs with ours for the vision tower, in the form that the table has.

    Up to transformers 5.1x a table (`sub_configs`) holds classes, from 5.2x on (`sub_configs_defaults`) specs.
    """
    before = declared["vision_config"]
    ours = LiteFrameVisionConfig if isinstance(before, type) else type(before)(LiteFrameVisionConfig)
    return {**declared, "vision_config": ours}


def as_vision_config(value: Any) -> Any:
    """The vision config of a model's config, from whatever form it came in."""
    return LiteFrameVisionConfig(**(value or {})) if value is None or isinstance(value, dict) else value


def computing_dtype(*modules: nn.Module) -> torch.dtype:
    """The dtype that modules compute in: of their first vector, as a bias or the weight of a norm is.

    Quantizers pack matrices, into whatever dtype and shape, and leave vectors as they are.
    """
    vectors = (p.dtype for module in modules for p in module.parameters() if p.ndim == 1 and p.is_floating_point())
    return next(vectors, torch.get_default_dtype())


class StrictLoading:
    """from_pretrained that refuses a checkpoint which would leave weights random."""

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but missing weights raise ValueError.

        Raises:
            ValueError: the checkpoint lacks weights of this model, or holds them in another shape.
        """
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        missing = sorted(info["missing_keys"])
        if missing:
            raise ValueError(
                f"{path} lacks {len(missing)} weights of {cls.__name__} (first: {', '.join(missing[:3])}); "
                "it is not a complete checkpoint of this model"
            )
        return (model, info) if output_loading_info else model


class LiteFrameVisionModel(StrictLoading, PreTrainedModel):
    """A LiteFrame encoder that transformers can save and load."""

    config_class = LiteFrameVisionConfig
    base_model_prefix = "encoder"  # so that an encoder folder's weights, saved without the prefix, load too
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _no_split_modules = ["Block"]
    # The encoder always uses torch's own attention; a choice made for the language model must not fail here.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: LiteFrameVisionConfig):
        super().__init__(config)
        self.encoder = LiteFrameEncoder(config.encoder_config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The encoder has initialized itself (its convolutions must start as identity and mean).
        return

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding, the layer that pixels enter by."""
        return self.encoder.patch_embed

    @can_return_tuple
    def forward(
        self, pixel_values_videos: Tensor, mode: str | None = None, still: bool = False, **kwargs: Any
    ) -> BaseModelOutput:
        """[V,T,3,H,W], one clip a video, normalized or uint8 -> last_hidden_state [V,ceil(T/4),h,w,C].

        `mode` is a compression of an elastic encoder, which LMA trains with; None is its own. `still`: each video is
        one frame, an image, and is encoded as such, not as a clip of its copies.
        """
        pixels, dtype = pixel_values_videos, computing_dtype(self.encoder)
        of_bytes = pixels.dtype == torch.uint8
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or _autocasts():
            # Also where it is trained in float32.
            pixels = normalized(pixels, self.encoder.config, dtype) if of_bytes else pixels.to(dtype)
            return BaseModelOutput(last_hidden_state=self.encoder(pixels, mode, still))
        form = self.encoder.for_inference()
        return BaseModelOutput(last_hidden_state=form(pixels if of_bytes else pixels.to(dtype), mode, still))


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")


AutoConfig.register(LiteFrameVisionConfig.model_type, LiteFrameVisionConfig, exist_ok=True)
AutoModel.register(LiteFrameVisionConfig, LiteFrameVisionModel, exist_ok=True)
