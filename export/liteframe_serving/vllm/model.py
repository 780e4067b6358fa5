"""Video LLMs with a LiteFrame encoder as vLLM models: vLLM's language model, the encoder and projector as trained."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
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

from liteframe_serving.prompts import PREFIXES, regrouped
from liteframe_serving.served import ServedMedia, ServedVision, language_architecture, served_classes
from liteframe_serving.vllm.processing import LiteFrameDummyInputs, LiteFrameProcessingInfo, LiteFrameVllmProcessor

as_registered = MULTIMODAL_REGISTRY.register_processor(
    LiteFrameVllmProcessor, info=LiteFrameProcessingInfo, dummy_inputs=LiteFrameDummyInputs
)


class LiteFrameVideoLLM(ServedVision, nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):
    """A LiteFrame encoder before vLLM's language model; `served_classes` makes a class for each family."""

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=PREFIXES)
    _mark_tower_model: Any  # vLLM's, like the next; type checkers do not read vLLM
    _mark_language_model: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.config: Any = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.add_vision(self.config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config.text_config,
                architectures=[language_architecture(self.config.text_config)],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for a video or an image in a prompt."""
        return {"video": "<video>", "image": cls.family.image_token}[modality]

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Features of videos and images, one tensor [tokens, text hidden size] each, in the order of the arguments.

        Args:
            **kwargs: pixel_values [N,3,h,w] of images; pixel_values_videos and video_frames as of `regrouped`.
        """
        features: list[Tensor] = []
        for name, value in kwargs.items():
            if name == "pixel_values":
                features += self.get_video_features([image[None] for image in value]).pooler_output
            elif name == "pixel_values_videos":
                features += self.get_video_features(regrouped(value, kwargs["video_frames"])).pooler_output
        return features

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3,L] of a prompt, and how much the next one is above L."""
        media = []
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            told = {name: field.data for name, field in feature.data.items()}
            if feature.modality == "image":
                height, width = told["pixel_values"].shape[-2:]
                media.append(ServedMedia(1, height, width))
                continue
            frames = told["pixel_values_videos"]
            height, width = frames.shape[-2:]
            seconds = [time / 1000 for time in told["video_milliseconds"].tolist()]
            media.append(ServedMedia(len(frames), height, width, seconds))
        return self.mrope_positions(input_tokens, media)

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
        """Logits [N,V] of hidden states [N,C] by the language model's head; None on ranks that do not gather them."""
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Fill the model with an exported checkpoint; the names that were filled."""
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> MultiModelKeys:
        """Under which names language model, projector and encoder are, for LoRA."""
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="multi_modal_projector", tower_model="vision_tower"
        )


# architecture of an export -> the class that serves it, which vLLM looks up in this module
SERVED = {name: as_registered(cls) for name, cls in served_classes(LiteFrameVideoLLM, __name__).items()}
globals().update(SERVED)
