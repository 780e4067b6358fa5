"""Video LLMs with a LiteFrame encoder as SGLang models: SGLang's language model, encoder and projector as trained."""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from sglang.srt.managers.mm_utils import general_mm_embed_routine, pad_mm_tokens
from sglang.srt.managers.schedule_batch import MultimodalDataItem, MultimodalInputs
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.registry import ModelRegistry
from sglang.srt.utils import add_prefix
from torch import Tensor, nn

from liteframe_serving.prompts import served_name
from liteframe_serving.served import ServedVision, language_architecture, served_classes

LANGUAGE_MODEL = "language_model."


def language_model_class(text_config: Any) -> type[nn.Module]:
    """SGLang's own class for a language model.

    Raises:
        ValueError: SGLang has none.
    """
    architecture = language_architecture(text_config)
    if not ModelRegistry.is_arch_supported(architecture):
        raise ValueError(f"SGLang has no language model {architecture} (text_config.model_type)")
    return ModelRegistry.resolve_model_cls(architecture)[0]


class LiteFrameVideoLLM(ServedVision, nn.Module):
    """A LiteFrame encoder before SGLang's language model; `served_classes` makes a class for each family."""

    def __init__(self, config: Any, quant_config: Any = None, prefix: str = ""):
        super().__init__()
        self.config = config
        self.add_vision(config)
        self.language_model: Any = language_model_class(config.text_config)(
            config.text_config, quant_config=quant_config, prefix=add_prefix("language_model", prefix)
        )

    def get_video_feature(self, items: list[MultimodalDataItem]) -> list[Tensor]:
        """Features of videos or images, one tensor [tokens, text hidden size] each; an item's feature is [T,3,h,w]."""
        return self.get_video_features([item.feature for item in items]).pooler_output

    get_image_feature = get_video_feature

    def pad_input_ids(self, input_ids: array, mm_inputs: MultimodalInputs) -> array:
        """Token ids in which each video's image tokens are numbers of its own, by which SGLang knows it again."""
        return pad_mm_tokens(input_ids, mm_inputs)

    def forward(self, input_ids: Tensor, positions: Tensor, forward_batch: ForwardBatch, **kwargs: Any) -> Any:
        """The language model's output, with features in the places of the image tokens."""
        return general_mm_embed_routine(
            input_ids=input_ids,
            forward_batch=forward_batch,
            language_model=self.language_model,
            multimodal_model=self,
            positions=positions,
        )

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Fill the model with an exported checkpoint.

        Raises:
            ValueError: the checkpoint lacks weights, or has some that belong to no part of the model.
        """
        ours: dict[str, Tensor] = {}
        given: set[str] = set()

        def of_language_model() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                place = served_name(name)
                given.add(place)
                if place.startswith(LANGUAGE_MODEL):
                    yield place.removeprefix(LANGUAGE_MODEL), tensor
                else:
                    ours[place] = tensor

        self.language_model.load_weights(of_language_model())
        missing, unexpected = self.load_state_dict(ours, strict=False)
        missing = [name for name in missing if not name.startswith(LANGUAGE_MODEL)]
        head = f"{LANGUAGE_MODEL}lm_head.weight"
        if head in dict(self.named_parameters()) and head not in given:  # which a tied head is not
            missing.append(head)
        if missing or unexpected:
            raise ValueError(f"the checkpoint lacks {missing} and has {unexpected}, which no part of the model takes")


# architecture of an export -> the class that serves it
SERVED = served_classes(LiteFrameVideoLLM, __name__)
EntryClass = list(SERVED.values())
