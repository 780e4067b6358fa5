"""InternVL with a LiteFrame encoder as a vLLM model: vLLM's language model, the encoder and projector as trained."""

from typing import Any

from torch import nn
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from vllm.config import VllmConfig
from vllm.model_executor.models.interns1 import InternS1ForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from liteframe.models.internvl import LiteFrameInternVLModel
from liteframe.models.vision import LiteFrameVisionModel
from liteframe_vllm.processing import LiteFrameDummyInputs, LiteFrameProcessingInfo, LiteFrameVllmProcessor
from liteframe_vllm.weight_names import PREFIXES


@MULTIMODAL_REGISTRY.register_processor(
    LiteFrameVllmProcessor, info=LiteFrameProcessingInfo, dummy_inputs=LiteFrameDummyInputs
)
class LiteFrameInternVLForConditionalGeneration(InternS1ForConditionalGeneration):
    """vLLM's InternVL in transformers' format, with another tower and videos as slots.

    vLLM's class provides the placeholders, the forward pass of the language model, logits and the loading of weights.
    """

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=PREFIXES)

    # Clips, pixel shuffle and projector are computed by the very functions that trained the model.
    get_video_features = LiteFrameInternVLModel.get_video_features
    _encode = LiteFrameInternVLModel._encode
    fold = LiteFrameInternVLModel.fold
    ending = LiteFrameInternVLModel.ending

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        nn.Module.__init__(self)  # not the parent's own, which builds an InternViT
        config = vllm_config.model_config.hf_config
        self.config = config
        self.multimodal_config = vllm_config.model_config.multimodal_config
        with self._mark_tower_model(vllm_config, {"image", "video"}):
            self.vision_tower = LiteFrameVisionModel(config.vision_config)
            self.multi_modal_projector = InternVLMultiModalProjector(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, hf_config=config.text_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.visual_token_mask = None
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> list[Any]:
        """Features of videos and images, one tensor [tokens, text hidden size] each, in the order of the arguments.

        Args:
            **kwargs: pixel_values [N,3,h,w] of images; pixel_values_videos [sum of T,3,h,w] and video_frames [V].
        """
        features: list[Any] = []
        for name, value in kwargs.items():
            if name == "pixel_values":
                features += self.get_video_features(value, [1] * len(value)).pooler_output
            elif name == "pixel_values_videos":
                features += self.get_video_features(value, kwargs["video_frames"]).pooler_output
        return features
