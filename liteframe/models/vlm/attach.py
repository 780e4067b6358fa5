"""Put an encoder into a Video LLM that is in memory, and make its processor fit.

Shapes: [V,T,3,H,W] videos -> [V,ceil(T/t),h,w,C] features, C the width of the vision tower that is replaced.
"""

import copy
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.inference import normalized
from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.vision import LiteFrameVisionConfig, LiteFrameVisionModel, computing_dtype

# How every encoder has seen frames (liteframe/data/preprocess.py), whatever the checkpoint's own tower wants.
STEPS = {
    "do_resize": True, "resample": 3, "do_center_crop": False, "do_pad": False, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True,
}  # fmt: skip


class InMemoryTower(nn.Module):
    """Any module [V,T,3,H,W] -> [V,ceil(T/t),h,w,C] behind the interface of LiteFrameVisionModel; not savable.

    A still is given to it as a video of one frame.
    """

    def __init__(self, encoder: nn.Module, config: LiteFrameConfig):
        super().__init__()
        self.encoder, self.encoder_config = encoder, config

    def forward(self, pixel_values_videos: Tensor, **kwargs: Any) -> BaseModelOutput:
        """[V,T,3,H,W], normalized or uint8 -> last_hidden_state [V,ceil(T/t),h,w,C]."""
        pixels = pixel_values_videos
        if pixels.dtype == torch.uint8:
            pixels = normalized(pixels, self.encoder_config, computing_dtype(self.encoder))
        return BaseModelOutput(last_hidden_state=self.encoder(pixels))


def attach_encoder(
    vlm: PreTrainedModel, encoder: nn.Module, *, config: LiteFrameConfig | None = None
) -> PreTrainedModel:
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
    width = vlm.config.vision_config.hidden_size
    if config.teacher_dim != width * (1 + config.deepstack):
        raise ValueError(
            f"the encoder emits {config.teacher_dim} channels, but the projector of this Video LLM takes {width}"
            f"{f' of {1 + config.deepstack} blocks' if config.deepstack else ''}; "
            "use an encoder distilled from this model's own vision tower"
        )
    family = family_of(vlm.config.model_type)
    parts = family.parts(vlm)
    blocks = len(getattr(vlm.config.vision_config, "deepstack_visual_indexes", None) or ()) if family.deepstack else 0
    if config.deepstack not in (0, blocks):
        raise ValueError(
            f"the encoder emits features of {config.deepstack} inner blocks (deepstack), and the language model reads "
            f"those of {blocks}; use an encoder distilled from this model's own vision tower"
        )
    values = vlm.config.to_dict()
    kept = {name: getattr(vlm.config.vision_config, name) for name in family.vision_fields}
    values["vision_config"] = LiteFrameVisionConfig(**config.to_dict(), **kept)
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
        model.model.vision_tower = InMemoryTower(encoder, config)
    mergers = family.deepstack if config.deepstack else None
    model.model.multi_modal_projector = parts.projector if mergers is None else mergers(parts.tower)
    model.model.take_language_model(parts.language_model)
    for name, parameter in parts.own.items():
        setattr(model.model, name, parameter)
    model.lm_head = parts.head
    model.generation_config = vlm.generation_config
    return model.train(vlm.training)


def _tokens_per_slot(config: LiteFrameConfig, merge_factor: int) -> int:
    _, h, w = config.compression
    side = config.image_size // config.patch_size
    return (side // h // merge_factor) * (side // w // merge_factor)


def take_mode(model: Any, mode: str) -> None:
    """Leave a Video LLM with one compression of its elastic encoder, in place; its processor then has to fit anew.

    Raises:
        ValueError: the encoder has no such mode.
    """
    tower = model.model.vision_tower
    encoder = tower.encoder.extract(mode)
    narrow_config(model.config, mode)
    with torch.device("meta"):
        model.model.vision_tower = LiteFrameVisionModel(model.config.vision_config)
    model.model.vision_tower.encoder = encoder
    model.model.vision_tower.train(tower.training)


def narrow_config(config: Any, mode: str) -> None:
    """Change a Video LLM's config to one compression of its elastic encoder; errors as of take_mode."""
    family, vision = family_of(config.model_type), config.vision_config
    encoder = vision.encoder_config.of_mode(mode)
    kept = {name: getattr(vision, name) for name in family.vision_fields}
    config.vision_config = LiteFrameVisionConfig(**encoder.to_dict(), **kept)
    if hasattr(config, "image_seq_length"):
        config.image_seq_length = _tokens_per_slot(encoder, family.merge_factor(config))


def with_encoder(vlm: PreTrainedModel, encoder: str | os.PathLike[str] | LiteFrameEncoder) -> PreTrainedModel:
    """attach_encoder with an encoder folder or a LiteFrameEncoder, in the dtype and on the device of `vlm`."""
    if isinstance(encoder, nn.Module):
        encoder = copy.deepcopy(encoder)  # the caller's keeps its precision
    else:
        encoder = LiteFrameEncoder.from_pretrained(encoder)
    return attach_encoder(vlm, encoder.to(device=vlm.device, dtype=vlm.dtype))


def processor_for(base: Any, config: Any) -> LiteFrameProcessor:
    """A transformers processor made to fit the encoder that its model now has, which sees frames as in training.

    Args:
        base: transformers' processor of the model.
        config: of the model with its encoder.

    Raises:
        ValueError: the two disagree on frame size, mean or std, or the sizes that the encoder has seen do not divide
            into the projector's tokens.
    """
    family, encoder = family_of(config.model_type), config.vision_config.encoder_config
    t, h, w = encoder.compression
    if h != w:
        raise ValueError(f"the encoder compresses {h}x{w} patches; the prompt needs the same both ways")
    video_processor = family.frames_processor(base.video_processor)  # a copy
    if not family.keeps_frame_size:
        video_processor.size = {"height": encoder.image_size, "width": encoder.image_size}
    for name, value in STEPS.items():
        setattr(video_processor, name, value)
    template = {"chat_template": base.chat_template} if family.keeps_chat_template else {}
    processor: LiteFrameProcessor = family.processor_class(
        base.tokenizer,
        video_processor,
        frames_per_slot=t,
        pixels_per_token=encoder.patch_size * h * family.merge_factor(config),
        resize=encoder.resize,
        **template,
        **family.processor_options(config),
    )
    _check_preprocessing(processor, encoder)
    if encoder.resize == "aspect" and any(processor.pixels_per_token % step for step in encoder.pixel_multiple):
        raise ValueError(
            f"the encoder has seen frames whose sides are multiples of {encoder.pixel_multiple} pixels (down, across), "
            f"the projector of this Video LLM wants multiples of {processor.pixels_per_token}; use an encoder "
            "distilled from this model's own vision tower"
        )
    return processor


def _check_preprocessing(processor: LiteFrameProcessor, encoder: LiteFrameConfig) -> None:
    of_processor = {
        "size": processor.frame_size,
        "mean": tuple(processor.video_processor.image_mean),
        "std": tuple(processor.video_processor.image_std),
    }
    of_encoder = {"size": (encoder.image_size,) * 2, "mean": encoder.image_mean, "std": encoder.image_std}
    for name, value in of_encoder.items():
        if any(abs(a - b) > 1e-3 for a, b in zip(of_processor[name], value, strict=True)):
            raise ValueError(
                f"the Video LLM prepares frames with {name} {of_processor[name]}, but the encoder was trained with "
                f"{value}; use an encoder distilled from this model's own vision tower"
            )
