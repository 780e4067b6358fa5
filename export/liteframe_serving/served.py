"""The classes that a server knows a Video LLM with a LiteFrame encoder by: one a family, made from its record."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from liteframe.models.vlm.base import VlmBackbone
from liteframe.models.vlm.family import FAMILIES
from liteframe.models.vlm.family_record import Family
from liteframe.models.vlm.processor import grid_slots, slot_times
from liteframe.models.vlm.vision import LiteFrameVisionModel

# Language halves that transformers has no causal language model of, and servers under the name of their plain kind.
PLAIN_KINDS = {"qwen2_5_vl_text": "Qwen2ForCausalLM", "qwen3_vl_text": "Qwen3ForCausalLM"}


class ServedMedia(NamedTuple):
    """A video or an image of a request: frames, their height and width in pixels, and their seconds, if known."""

    frames: int
    height: int
    width: int
    seconds: Sequence[float] | None = None


class ServedVision:
    """Mix-in of a server's model: encoder, projector and what surrounds them, by the functions that trained the model.

    Attributes:
        family: of the Video LLM.
    """

    family: ClassVar[Family]
    config: Any
    vision_tower: Any
    multi_modal_projector: Any

    get_video_features: Any = VlmBackbone.get_video_features
    project_grids = VlmBackbone.project_grids
    _encode = VlmBackbone._encode

    def add_vision(self, config: Any) -> None:
        """Set vision tower and projector, with weights that are loaded later.

        Raises:
            ValueError: the encoder gives features of inner blocks (deepstack), which do not reach a server's language
                model here.
        """
        if blocks := config.vision_config.encoder_config.deepstack:
            raise ValueError(
                f"the encoder gives features of {blocks} inner blocks (deepstack), which servers are not given: serve "
                "one distilled without model.teacher.deepstack, or ask this one with transformers"
            )
        self.vision_tower = LiteFrameVisionModel(config.vision_config)
        self.family.model_class.add_projector(self, config)

    def merge_patches(self, grid: Tensor) -> Tensor:
        """[T',h,w,C] -> what the family's projector takes."""
        return self.family.model_class.merge_patches(self, grid)

    def end_embedding(self) -> Tensor | None:
        """What ends a video for the language model [1, text hidden size], if anything does."""
        return self.family.model_class.end_embedding(self)

    def mrope_positions(self, ids: Sequence[int], media: Sequence[ServedMedia]) -> tuple[Tensor, int]:
        """Positions of a prompt on three axes.

        Args:
            ids: its L tokens.
            media: its videos and images, in order.

        Returns:
            int64 [3,L], and how much the next token's position is above L.

        Raises:
            ValueError: the family counts on one axis, or the prompt holds other videos and images.
        """
        if self.family.mrope is None:
            raise ValueError(f"the language model of a {self.family.model_type} counts on one axis")
        mrope, encoder = self.family.mrope(self.config), self.config.vision_config.encoder_config
        frames_per_slot, stride, _ = encoder.compression
        side = encoder.patch_size * stride * self.family.merge_factor(self.config)
        places = [torch.empty(4, 0, dtype=torch.long)]
        for one in media:
            shape = (one.height // side, one.width // side)
            slots = grid_slots(one.frames, frames_per_slot, shape[0] * shape[1])
            places.append(mrope.places(slots, shape, slot_times(slots, one.seconds)))
        vision = torch.tensor(list(ids)) == self.config.image_token_id
        positions = mrope.position_ids(vision, torch.cat(places, 1))
        return positions, int(positions.max()) + 1 - len(ids)


def language_architecture(text_config: Any) -> str:
    """What servers call a language half; its model_type, where nobody has a name for it."""
    kind: str = text_config.model_type
    return PLAIN_KINDS.get(kind) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)


def served_classes(base: type, module: str) -> dict[str, Any]:
    """A subclass of a server's model for each family, by the architecture that exports name in their config.json.

    Args:
        base: the server's model, with ServedVision mixed in.
        module: where the classes will be found.
    """
    return {
        family.generation_class.__name__: type(
            family.generation_class.__name__,
            (base,),
            {
                "family": family,
                "supports_mrope": family.mrope is not None,  # which vLLM looks for
                "__module__": module,
                "__doc__": family.generation_class.__doc__,
            },
        )
        for family in FAMILIES.values()
    }
