"""Video LLMs with a LiteFrame encoder as vLLM models: vLLM's language model, the encoder and projector as trained."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionMultiModalProjector
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from liteframe.models.vlm.base import VideoModel
from liteframe.models.vlm.internvl import LiteFrameInternVLModel
from liteframe.models.vlm.llava_onevision import LiteFrameLlavaOnevisionModel
from liteframe.models.vlm.vision import LiteFrameVisionModel
from liteframe_serving.prompts import PREFIXES
from liteframe_serving.vllm.processing import LiteFrameDummyInputs, LiteFrameProcessingInfo, LiteFrameVllmProcessor

as_registered = MULTIMODAL_REGISTRY.register_processor(
    LiteFrameVllmProcessor, info=LiteFrameProcessingInfo, dummy_inputs=LiteFrameDummyInputs
)


class LiteFrameVideoLLM(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """What all families do; one names projector and image token and brings `merge_patches`, perhaps `end_embedding`."""

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=PREFIXES)
    projector: ClassVar[type[nn.Module]]
    image_token: ClassVar[str]
    _mark_tower_model: Any  # vLLM's, like the next; type checkers do not read vLLM
    _mark_language_model: Any

    # Clips and what surrounds the projector are computed by the very functions that trained the model.
    get_video_features = VideoModel.get_video_features
    _encode = VideoModel._encode
    end_embedding = VideoModel.end_embedding

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.vision_tower = LiteFrameVisionModel(self.config.vision_config)
            self.multi_modal_projector = self.projector(self.config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a video or an image in a prompt."""
        return {"video": "<video>", "image": cls.image_token}[modality]

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Features of videos and images, one tensor [tokens, text hidden size] each, in the order of the arguments.

        Args:
            **kwargs: pixel_values [N,3,h,w] of images; pixel_values_videos [sum of T,3,h,w] and video_frames [V].
        """
        features: list[Tensor] = []
        for name, value in kwargs.items():
            if name == "pixel_values":
                features += self.get_video_features(value, [1] * len(value)).pooler_output
            elif name == "pixel_values_videos":
                features += self.get_video_features(value, kwargs["video_frames"]).pooler_output
        return features

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The language model's hidden states, or what the next pipeline stage takes."""
        return self.language_model.model(
            input_ids=input_ids,
            positions=positions,
            intermediate_tensors=intermediate_tensors,
            inputs_embeds=None if intermediate_tensors is not None else inputs_embeds,
        )

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """The language model's."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the model with an exported checkpoint; the names that were filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Where the parts are."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )


@as_registered
class LiteFrameInternVLForConditionalGeneration(LiteFrameVideoLLM):
    """InternVL with a LiteFrame encoder."""

    projector = InternVLMultiModalProjector
    image_token = "<IMG_CONTEXT>"
    merge_patches = LiteFrameInternVLModel.merge_patches


@as_registered
class LiteFrameLlavaOnevisionForConditionalGeneration(LiteFrameVideoLLM):
    """LLaVA-OneVision with a LiteFrame encoder, whose videos end with a vector of their own."""

    projector = LlavaOnevisionMultiModalProjector
    image_token = "<image>"
    merge_patches = LiteFrameLlavaOnevisionModel.merge_patches
    end_embedding = LiteFrameLlavaOnevisionModel.end_embedding

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.image_newline = nn.Parameter(torch.empty(self.config.text_config.hidden_size))
