"""A Video LLM ready for use: from disk, with or without a LiteFrame encoder and a LoRA adapter.

Knows both rooms, models and data, and PEFT; it imports no training code, so that exports can use it too.
"""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    InternVLForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    ProcessorMixin,
)

from liteframe.files import check_weight_index
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder, read_config
from liteframe.models.vlm.adapter import load_adapter, merge_adapter
from liteframe.models.vlm.attach import LiteFrameVlm, Vlm, attach_encoder
from liteframe.models.vlm.internvl import LiteFrameInternVLConfig, LiteFrameInternVLForConditionalGeneration
from liteframe.models.vlm.llava_onevision import (
    LiteFrameLlavaOnevisionConfig,
    LiteFrameLlavaOnevisionForConditionalGeneration,
)
from liteframe.models.vlm.processor import (
    LiteFrameInternVLProcessor,
    LiteFrameLlavaOnevisionProcessor,
    LiteFrameProcessor,
)

CLASSES = {
    "internvl": InternVLForConditionalGeneration,
    "llava_onevision": LlavaOnevisionForConditionalGeneration,
    "liteframe_internvl": LiteFrameInternVLForConditionalGeneration,
    "liteframe_llava_onevision": LiteFrameLlavaOnevisionForConditionalGeneration,
}

AutoProcessor.register(LiteFrameInternVLConfig, LiteFrameInternVLProcessor, exist_ok=True)
AutoProcessor.register(LiteFrameLlavaOnevisionConfig, LiteFrameLlavaOnevisionProcessor, exist_ok=True)


def load_video_llm(
    source: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | LiteFrameEncoder | None = None,
    adapter: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str = "auto",
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a Video LLM in eval mode, on the CPU, with the processor that fits it.

    Args:
        source: a folder or Hugging Face id of an InternVL or LLaVA-OneVision in transformers' own format, or of one
            that already has a LiteFrame encoder.
        encoder: an encoder folder, or the encoder itself, to put in place of the vision tower.
        adapter: a PEFT adapter folder trained on exactly this combination; it is merged.
        dtype: of the weights; "auto" is what the checkpoint says. The encoder takes the dtype of the language model.

    Returns:
        The model and its processor: with an encoder ours, else transformers' own classes.

    Raises:
        ValueError: source is of another family, lacks weights, already has an encoder, does not fit the encoder, or the
            adapter has no safetensors weights.
    """
    check_weight_index(source)
    # Left unsaid, transformers would ask on the terminal whether to run a checkpoint's code.
    kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    if kind not in CLASSES:
        raise ValueError(f"{source} is a {kind!r} model; expected one of {', '.join(CLASSES)}")
    if kind.startswith("liteframe_") and encoder is not None:
        raise ValueError(f"{source} already has a LiteFrame encoder; give the Video LLM it was made from")
    model: Any
    try:
        model, info = CLASSES[kind].from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged ({error}); copy or download them again") from error
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source} lacks {len(lacking)} weights of its model (first: {lacking[0]}), which would be random; "
            "copy or download it again"
        )
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    if encoder is not None:
        model = with_encoder(model, encoder)
        processor = processor_for(processor, model.config)
    if adapter is not None:
        model = merge_adapter(load_adapter(model, adapter))
    return model.eval(), processor


def with_encoder(vlm: Vlm, encoder: str | os.PathLike[str] | LiteFrameEncoder) -> LiteFrameVlm:
    """attach_encoder with an encoder folder or a LiteFrameEncoder, in the dtype and on the device of `vlm`."""
    if isinstance(encoder, nn.Module):
        encoder = copy.deepcopy(encoder)  # the caller's keeps its precision
    else:
        encoder = LiteFrameEncoder.from_pretrained(encoder)
    return attach_encoder(vlm, encoder.to(device=vlm.device, dtype=vlm.dtype))


def processor_for(base: Any, config: Any) -> LiteFrameProcessor:
    """The processor of an InternVL or LLaVA-OneVision, made to fit the encoder that the model now has.

    Args:
        base: transformers' processor of the model.
        config: of the model with its encoder.

    Raises:
        ValueError: the two disagree on frame size, mean or std.
    """
    encoder = config.vision_config.encoder_config
    t, h, w = encoder.compression
    if h != w:
        raise ValueError(f"the encoder compresses {h}x{w} patches; the prompt needs the same both ways")
    processor: LiteFrameProcessor
    if isinstance(config, LiteFrameInternVLConfig):
        processor = LiteFrameInternVLProcessor(
            base.tokenizer,
            base.video_processor,
            chat_template=base.chat_template,
            frames_per_slot=t,
            pixels_per_token=encoder.patch_size * h * round(1 / config.downsample_ratio),
        )
    else:
        # SigLIP's 384 pixels are no multiple of two patches: such a student is distilled at a size of its own.
        video_processor = copy.deepcopy(base.video_processor)
        video_processor.size = {"height": encoder.image_size, "width": encoder.image_size}
        processor = LiteFrameLlavaOnevisionProcessor(
            base.tokenizer, video_processor, frames_per_slot=t, pixels_per_token=encoder.patch_size * h
        )
    _check_preprocessing(processor, encoder)
    return processor


def load_processor(source: str | os.PathLike[str], encoder: str | os.PathLike[str]) -> LiteFrameProcessor:
    """The processor that `load_video_llm(source, encoder=encoder)` gives, without reading any weights.

    Raises:
        ValueError: source is of another family or has an encoder already, or does not fit the encoder.
    """
    config = AutoConfig.from_pretrained(source)
    if config.model_type not in ("internvl", "llava_onevision"):
        raise ValueError(f"{source} is a {config.model_type!r} model; expected internvl or llava_onevision")
    with torch.device("meta"):
        vlm = CLASSES[config.model_type](config)
        model = attach_encoder(vlm, LiteFrameEncoder(read_config(Path(encoder))))
    return processor_for(AutoProcessor.from_pretrained(source), model.config)


def _check_preprocessing(processor: LiteFrameProcessor, encoder: LiteFrameConfig) -> None:
    found = {
        "size": processor.frame_size,
        "mean": tuple(processor.video_processor.image_mean),
        "std": tuple(processor.video_processor.image_std),
    }
    wanted = {"size": (encoder.image_size,) * 2, "mean": encoder.image_mean, "std": encoder.image_std}
    for name, value in wanted.items():
        if any(abs(a - b) > 1e-3 for a, b in zip(found[name], value, strict=True)):
            raise ValueError(
                f"the Video LLM prepares frames with {name} {found[name]}, but the encoder was trained with {value}; "
                "use an encoder distilled from this model's own vision tower"
            )
