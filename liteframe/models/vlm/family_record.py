"""What LiteFrame knows of a family of Video LLMs: the record that family.py has one of for each."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AutoModel

from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.tower_steps import TowerSteps


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
        deepstack: from transformers' tower to the projector of features with those of inner blocks behind them, where
            its language model reads them.
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
    deepstack: Callable[[Any], nn.Module] | None = None
    closing: str = ""
    note: str = ""


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


def tower_half(base: Any, tower_class: Any) -> Any:
    """As vision_half, of a family whose projector, `merger`, is a part of its tower, `visual`, of this class."""

    class TowerHalf(base):
        _keys_to_ignore_on_load_unexpected = [r"language_model", r"lm_head", r"^mtp"]

        def __init__(self, config: Any):
            super().__init__(config)
            self.model = nn.Module()
            self.model.visual = tower_class._from_config(config.vision_config)
            self.post_init()

        @property
        def tower(self) -> Any:
            return self.model.visual

        @property
        def projector(self) -> Any:
            return self.tower.merger

    return TowerHalf
