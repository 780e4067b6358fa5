"""The families of Video LLMs: one record each, and nothing else in LiteFrame asks of which family a model is.

A family is added by one file (config, model, head and processor with a LiteFrame encoder) and one record here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import (
    InternVLForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionPreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLPreTrainedModel,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5PreTrainedModel,
    Qwen3_5VisionModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLPreTrainedModel,
    Qwen3VLVisionModel,
)
from transformers.models.internvl.modeling_internvl import InternVLPreTrainedModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from liteframe.models.vlm.family_record import Family, VlmParts, tower_half, vision_half
from liteframe.models.vlm.internvl import (
    LiteFrameInternVLConfig,
    LiteFrameInternVLForConditionalGeneration,
    LiteFrameInternVLModel,
    LiteFrameInternVLProcessor,
    shuffle_factor,
)
from liteframe.models.vlm.llava_onevision import (
    LiteFrameLlavaOnevisionConfig,
    LiteFrameLlavaOnevisionForConditionalGeneration,
    LiteFrameLlavaOnevisionModel,
    LiteFrameLlavaOnevisionProcessor,
)
from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.pair_tower import PAIR, pair_features, pair_frames
from liteframe.models.vlm.processor import Times
from liteframe.models.vlm.qwen import END, PAD, START, frames_of, timed_text
from liteframe.models.vlm.qwen2_5_vl import (
    LiteFrameQwen2_5_VLConfig,
    LiteFrameQwen2_5_VLForConditionalGeneration,
    LiteFrameQwen2_5_VLModel,
    LiteFrameQwen2_5_VLProcessor,
)
from liteframe.models.vlm.qwen3_5 import (
    LiteFrameQwen3_5Config,
    LiteFrameQwen3_5ForConditionalGeneration,
    LiteFrameQwen3_5Model,
    LiteFrameQwen3_5Processor,
)
from liteframe.models.vlm.qwen3_vl import (
    DeepstackMergers,
    LiteFrameQwen3VLConfig,
    LiteFrameQwen3VLForConditionalGeneration,
    LiteFrameQwen3VLModel,
    LiteFrameQwen3VLProcessor,
    read_deepstack,
)
from liteframe.models.vlm.tower_steps import INTERNVL_STEPS, LLAVA_ONEVISION_STEPS

OURS = "liteframe_"  # what our model types begin with
QWEN2_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN_VISION = (START, END, PAD, "<|video_pad|>")


def family_of(model_type: str) -> Family:
    """The family of a model, by the `model_type` of its config: transformers' own or ours.

    Raises:
        ValueError: there is no such family.
    """
    family = FAMILIES.get(model_type.removeprefix(OURS))
    if family is None:
        raise ValueError(f"a {model_type!r} model is of no known family; expected one of {', '.join(FAMILIES)}")
    return family


def _internvl_parts(vlm: Any) -> VlmParts:
    model = vlm.model
    return VlmParts(model.vision_tower, model.multi_modal_projector, model.language_model, vlm.lm_head, {})


def _internvl_frames(model: Any, pixels: Tensor) -> Tensor:
    return model.model.get_image_features(pixel_values=pixels).pooler_output  # [T,N,D]


def _internvl_text(processor: Any, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
    start, token, end = processor.start_image_token, processor.image_token, processor.end_image_token
    lines = []
    for first, last, tokens in slots:
        frames = f"{first + 1}" if first == last else f"{first + 1}-{last + 1}"
        if tokens:
            lines.append(f"Frame{frames}: {start}{token * tokens}{end}")
    return "\n".join(lines)


def _llava_onevision_parts(vlm: Any) -> VlmParts:
    model = vlm.model
    own = {"image_newline": model.image_newline}
    return VlmParts(model.vision_tower, model.multi_modal_projector, model.language_model, vlm.lm_head, own)


def _llava_onevision_frames(model: Any, pixels: Tensor) -> Tensor:
    inner, config = model.model, model.config
    # get_video_features ends with the newline vector in some versions of transformers and without it in others.
    hidden = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[config.vision_feature_layer]  # [T,n,C]
    if config.vision_feature_select_strategy == "default":
        hidden = hidden[:, 1:]
    return inner.apply_pooling(inner.multi_modal_projector(hidden))  # [T,N,D]


def _llava_onevision_text(processor: Any, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
    return processor.video_token * (sum(tokens for _, _, tokens in slots) + 1)


def _qwen_parts(vlm: Any) -> VlmParts:
    model = vlm.model
    return VlmParts(model.visual, model.visual.merger, model.language_model, vlm.lm_head, {})


def _qwen3_vl_frames(model: Any, pixels: Tensor) -> Tensor:
    read_deepstack(model.model.language_model)
    return pair_features(model, pixels)


def _qwen2_5_vl_text(processor: Any, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
    tokens = sum(tokens for _, _, tokens in slots)
    return f"{START}{processor.video_token * tokens}{END}" if tokens else ""


def _timed_text(processor: Any, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
    return timed_text(slots, times, processor.video_token)


INTERNVL = Family(
    model_type="internvl",
    hf_class=InternVLForConditionalGeneration,
    config_class=LiteFrameInternVLConfig,
    model_class=LiteFrameInternVLModel,
    generation_class=LiteFrameInternVLForConditionalGeneration,
    processor_class=LiteFrameInternVLProcessor,
    parts=_internvl_parts,
    merge_factor=lambda config: shuffle_factor(config.downsample_ratio),
    encode_frames=_internvl_frames,
    video_text=_internvl_text,
    end_embedding=lambda model: None,
    video_token_id=lambda config: config.image_token_id,
    image_token="<IMG_CONTEXT>",
    control_tokens=(*CHATML, "<img>", "</img>", "<IMG_CONTEXT>"),
    keeps_chat_template=True,
    keeps_frame_size=True,
    lora_layers=QWEN2_LAYERS,
    teacher_half=vision_half(InternVLPreTrainedModel, LiteFrameInternVLModel),
    feature_layer=None,
    feature_strategy="default",
    steps=INTERNVL_STEPS,
)

LLAVA_ONEVISION = Family(
    model_type="llava_onevision",
    hf_class=LlavaOnevisionForConditionalGeneration,
    config_class=LiteFrameLlavaOnevisionConfig,
    model_class=LiteFrameLlavaOnevisionModel,
    generation_class=LiteFrameLlavaOnevisionForConditionalGeneration,
    processor_class=LiteFrameLlavaOnevisionProcessor,
    parts=_llava_onevision_parts,
    merge_factor=lambda config: 1,
    encode_frames=_llava_onevision_frames,
    video_text=_llava_onevision_text,
    end_embedding=lambda model: model.model.image_newline[None],
    video_token_id=lambda config: config.video_token_id,
    image_token="<image>",
    control_tokens=CHATML,
    keeps_chat_template=False,  # which writes turns otherwise than the conversations it was trained on
    keeps_frame_size=False,  # SigLIP's 384 pixels are no multiple of two patches
    lora_layers=QWEN2_LAYERS,
    teacher_half=vision_half(LlavaOnevisionPreTrainedModel, LiteFrameLlavaOnevisionModel),
    feature_layer=-1,
    feature_strategy="full",
    steps=LLAVA_ONEVISION_STEPS,
)

QWEN3_VL = Family(
    model_type="qwen3_vl",
    hf_class=Qwen3VLForConditionalGeneration,
    config_class=LiteFrameQwen3VLConfig,
    model_class=LiteFrameQwen3VLModel,
    generation_class=LiteFrameQwen3VLForConditionalGeneration,
    processor_class=LiteFrameQwen3VLProcessor,
    parts=_qwen_parts,
    merge_factor=lambda config: config.vision_config.spatial_merge_size,
    encode_frames=_qwen3_vl_frames,
    video_text=_timed_text,
    end_embedding=lambda model: None,
    video_token_id=lambda config: config.video_token_id,
    image_token=PAD,
    control_tokens=(*CHATML, *QWEN_VISION),
    keeps_chat_template=False,  # which puts marks of vision around a video
    keeps_frame_size=False,
    lora_layers=QWEN2_LAYERS,
    teacher_half=tower_half(Qwen3VLPreTrainedModel, Qwen3VLVisionModel),
    feature_layer=None,
    feature_strategy=None,
    temporal_patch=PAIR,
    prepare_frames=pair_frames,
    frames_processor=frames_of,
    vision_fields=("spatial_merge_size", "out_hidden_size"),
    mrope=lambda config: Mrope(),
    deepstack=DeepstackMergers.of,
    note="the tower's features of inner blocks (deepstack) have no counterpart here: the language model reads those of "
    "the last block alone; an encoder distilled with model.teacher.deepstack has them",
)

QWEN2_5_VL = dataclasses.replace(
    QWEN3_VL,
    model_type="qwen2_5_vl",
    hf_class=Qwen2_5_VLForConditionalGeneration,
    config_class=LiteFrameQwen2_5_VLConfig,
    model_class=LiteFrameQwen2_5_VLModel,
    generation_class=LiteFrameQwen2_5_VLForConditionalGeneration,
    processor_class=LiteFrameQwen2_5_VLProcessor,
    video_text=_qwen2_5_vl_text,
    teacher_half=tower_half(Qwen2_5_VLPreTrainedModel, Qwen2_5_VisionTransformerPretrainedModel),
    encode_frames=pair_features,
    vision_fields=("spatial_merge_size", "tokens_per_second"),
    processor_options=lambda config: {"tokens_per_second": config.vision_config.tokens_per_second},
    mrope=lambda config: Mrope(config.vision_config.tokens_per_second),
    deepstack=None,
    closing=END,
    note="",
)

QWEN3_5 = dataclasses.replace(
    QWEN3_VL,
    model_type="qwen3_5",
    hf_class=Qwen3_5ForConditionalGeneration,
    config_class=LiteFrameQwen3_5Config,
    model_class=LiteFrameQwen3_5Model,
    generation_class=LiteFrameQwen3_5ForConditionalGeneration,
    processor_class=LiteFrameQwen3_5Processor,
    encode_frames=pair_features,
    lora_layers=(*QWEN2_LAYERS, "in_proj_qkv", "in_proj_z", "out_proj"),
    teacher_half=tower_half(Qwen3_5PreTrainedModel, Qwen3_5VisionModel),
    deepstack=None,
    note="",
)

FAMILIES = {family.model_type: family for family in (INTERNVL, LLAVA_ONEVISION, QWEN2_5_VL, QWEN3_VL, QWEN3_5)}
CONTROL_TOKENS = tuple(dict.fromkeys(token for family in FAMILIES.values() for token in family.control_tokens))
