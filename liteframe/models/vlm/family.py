"""The families of Video LLMs: one record each, and nothing else in LiteFrame asks of which family a model is.

A family is added by one file (config, model, head and processor with a LiteFrame encoder) and one record here.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import (
    AutoModel,
    InternVLForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionPreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLPreTrainedModel,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5PreTrainedModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLPreTrainedModel,
)
from transformers.models.internvl.modeling_internvl import InternVLPreTrainedModel

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
    LiteFrameQwen3VLConfig,
    LiteFrameQwen3VLForConditionalGeneration,
    LiteFrameQwen3VLModel,
    LiteFrameQwen3VLProcessor,
)
from liteframe.models.vlm.tower_steps import INTERNVL_STEPS, LLAVA_ONEVISION_STEPS, TowerSteps

OURS = "liteframe_"  # what our model types begin with
QWEN2_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
QWEN_VISION = (START, END, PAD, "<|video_pad|>")


class VlmParts(NamedTuple):
    """The parts of a transformers Video LLM.

    Attributes:
        tower: the vision tower.
        projector: from the tower's features to the language model's input.
        language_model: without its head.
        head: of the language model.
        own: what else the model without head has, by its name in ours.
    """

    tower: nn.Module
    projector: nn.Module
    language_model: nn.Module
    head: nn.Module
    own: dict[str, nn.Parameter]


def _plain_frames(video_processor: Any, video: Tensor, **steps: bool) -> Tensor:
    inputs = video_processor(videos=[video], return_tensors="pt", do_sample_frames=False, **steps)
    return inputs["pixel_values_videos"][0]


def _no_options(config: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """What LiteFrame knows of a family of Video LLMs.

    Attributes:
        model_type: of transformers' own config; ours is `liteframe_` + model_type.
        hf_class: transformers' model with head.
        config_class, model_class, generation_class, processor_class: ours, with a LiteFrame encoder; model_class says
            `add_projector`, `merge_patches` and `end_embedding`, processor_class `video_text` and `image_text`.
        parts: of a transformers model.
        merge_factor: patches per side that a config's projector merges into one token.
        encode_frames: (transformers' model, pixels [T,3,H,W]) -> [ceil(T / temporal_patch),N,text hidden size].
        video_text: (transformers' processor, slots, times) -> what stands for the video in its prompts; empty slots do
            not. Times are those of LiteFrameProcessor.video_text.
        end_embedding: what ends a video in transformers' model [1, text hidden size], if anything does.
        video_token_id: of transformers' config: the placeholder of one feature in its prompts.
        image_token: the placeholder of one feature in our prompts.
        control_tokens: text that the tokenizer turns into control or image tokens.
        keeps_chat_template: whether the checkpoint's own chat template writes `<video>` as training does; else
            processor_class brings its own.
        keeps_frame_size: whether students are distilled at the frame size that the checkpoint's processor has.
        lora_layers: linear layers of the language model's blocks that LoRA adapts.
        teacher_half: transformers' model without language model, of which there are `tower` and `projector`.
        feature_layer: hidden state of the tower that the projector reads; None is its output, normalized at last.
        feature_strategy: the `vision_feature_select_strategy` that this amounts to, where configs have one.
        steps: from pixels to tokens, between which reducers act; None where they cannot.
        temporal_patch: frames that transformers' tower sees at a time.
        prepare_frames: (transformers' video processor, uint8 [T,3,H,W], steps left out) -> [T,3,h,w].
        frames_processor: from transformers' video processor to one that gives our processor frames of a fixed size.
        vision_fields: of transformers' vision config, which ours keeps.
        processor_options: from our config to further arguments of processor_class.
        mrope: from transformers' config to how its language model numbers vision tokens, where it does not count them
            like words.
        closing: what stands behind the last slot of a video whose slots are not parted.
        note: what a run with an encoder of ours should say once.
    """

    model_type: str
    hf_class: Any
    config_class: Any
    model_class: Any
    generation_class: Any
    processor_class: Any
    parts: Callable[[Any], VlmParts]
    merge_factor: Callable[[Any], int]
    encode_frames: Callable[[Any, Tensor], Tensor]
    video_text: Callable[..., str]
    end_embedding: Callable[[Any], Tensor | None]
    video_token_id: Callable[[Any], int]
    image_token: str
    control_tokens: tuple[str, ...]
    keeps_chat_template: bool
    keeps_frame_size: bool
    lora_layers: tuple[str, ...]
    teacher_half: Any
    feature_layer: int | None
    feature_strategy: str | None
    steps: TowerSteps | None = None
    temporal_patch: int = 1
    prepare_frames: Callable[..., Tensor] = _plain_frames
    frames_processor: Callable[[Any], Any] = copy.deepcopy
    vision_fields: tuple[str, ...] = ()
    processor_options: Callable[[Any], Mapping[str, Any]] = _no_options
    mrope: Callable[[Any], Mrope] | None = None
    closing: str = ""
    note: str = ""


def family_of(model_type: str) -> Family:
    """The family of a model, by the `model_type` of its config: transformers' own or ours.

    Raises:
        ValueError: there is no such family.
    """
    family = FAMILIES.get(model_type.removeprefix(OURS))
    if family is None:
        raise ValueError(f"a {model_type!r} model is of no known family; expected one of {', '.join(FAMILIES)}")
    return family


def vision_half(base: Any, model_class: Any) -> Any:
    """The part of a transformers Video LLM that sees, as a class whose from_pretrained reads nothing of the rest.

    Args:
        base: the family's PreTrainedModel, so that transformers' conversion of weight names applies.
        model_class: ours, which adds the projector.
    """

    class VisionHalf(base):
        _keys_to_ignore_on_load_unexpected = [r"language_model", r"lm_head"]

        def __init__(self, config: Any):
            super().__init__(config)
            self.model = nn.Module()
            self.model.vision_tower = AutoModel.from_config(config.vision_config)
            model_class.add_projector(self.model, config)
            self.post_init()

        @property
        def tower(self) -> Any:
            return self.model.vision_tower

        @property
        def projector(self) -> Any:
            return self.model.multi_modal_projector

    return VisionHalf


def tower_half(base: Any) -> Any:
    """As vision_half, of a family whose projector, `merger`, is a part of its tower, `visual`."""

    class TowerHalf(base):
        _keys_to_ignore_on_load_unexpected = [r"language_model", r"lm_head", r"^mtp"]

        def __init__(self, config: Any):
            super().__init__(config)
            self.model = nn.Module()
            self.model.visual = AutoModel.from_config(config.vision_config)
            self.post_init()

        @property
        def tower(self) -> Any:
            return self.model.visual

        @property
        def projector(self) -> Any:
            return self.tower.merger

    return TowerHalf


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

QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    hf_class=Qwen2_5_VLForConditionalGeneration,
    config_class=LiteFrameQwen2_5_VLConfig,
    model_class=LiteFrameQwen2_5_VLModel,
    generation_class=LiteFrameQwen2_5_VLForConditionalGeneration,
    processor_class=LiteFrameQwen2_5_VLProcessor,
    parts=_qwen_parts,
    merge_factor=lambda config: config.vision_config.spatial_merge_size,
    encode_frames=pair_features,
    video_text=_qwen2_5_vl_text,
    end_embedding=lambda model: None,
    video_token_id=lambda config: config.video_token_id,
    image_token=PAD,
    control_tokens=(*CHATML, *QWEN_VISION),
    keeps_chat_template=False,  # which puts marks of vision around a video
    keeps_frame_size=False,
    lora_layers=QWEN2_LAYERS,
    teacher_half=tower_half(Qwen2_5_VLPreTrainedModel),
    feature_layer=None,
    feature_strategy=None,
    temporal_patch=PAIR,
    prepare_frames=pair_frames,
    frames_processor=frames_of,
    vision_fields=("spatial_merge_size", "tokens_per_second"),
    processor_options=lambda config: {"tokens_per_second": config.vision_config.tokens_per_second},
    mrope=lambda config: Mrope(config.vision_config.tokens_per_second),
    closing=END,
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
    encode_frames=pair_features,
    video_text=_timed_text,
    end_embedding=lambda model: None,
    video_token_id=lambda config: config.video_token_id,
    image_token=PAD,
    control_tokens=(*CHATML, *QWEN_VISION),
    keeps_chat_template=False,  # which puts marks of vision around a video
    keeps_frame_size=False,
    lora_layers=QWEN2_LAYERS,
    teacher_half=tower_half(Qwen3VLPreTrainedModel),
    feature_layer=None,
    feature_strategy=None,
    temporal_patch=PAIR,
    prepare_frames=pair_frames,
    frames_processor=frames_of,
    vision_fields=("spatial_merge_size", "out_hidden_size"),
    mrope=lambda config: Mrope(),
    note="the tower's features of inner blocks (deepstack) have no counterpart here: the language model reads those of "
    "the last block alone",
)

QWEN3_5 = dataclasses.replace(
    QWEN3_VL,
    model_type="qwen3_5",
    hf_class=Qwen3_5ForConditionalGeneration,
    config_class=LiteFrameQwen3_5Config,
    model_class=LiteFrameQwen3_5Model,
    generation_class=LiteFrameQwen3_5ForConditionalGeneration,
    processor_class=LiteFrameQwen3_5Processor,
    lora_layers=(*QWEN2_LAYERS, "in_proj_qkv", "in_proj_z", "out_proj"),
    teacher_half=tower_half(Qwen3_5PreTrainedModel),
    note="",
)

FAMILIES = {family.model_type: family for family in (INTERNVL, LLAVA_ONEVISION, QWEN2_5_VL, QWEN3_VL, QWEN3_5)}
CONTROL_TOKENS = tuple(dict.fromkeys(token for family in FAMILIES.values() for token in family.control_tokens))
