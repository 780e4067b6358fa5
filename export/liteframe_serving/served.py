"""The classes that a server knows a Video LLM with a LiteFrame encoder by: one a family, made from its record."""

from typing import Any, ClassVar

from torch import Tensor

from liteframe.models.vlm.base import VlmBackbone
from liteframe.models.vlm.family import FAMILIES, Family
from liteframe.models.vlm.vision import LiteFrameVisionModel


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
    _encode = VlmBackbone._encode

    def add_vision(self, config: Any) -> None:
        """Set vision tower and projector, with weights that are loaded later."""
        self.vision_tower = LiteFrameVisionModel(config.vision_config)
        self.family.model_class.add_projector(self, config)

    def merge_patches(self, grid: Tensor) -> Tensor:
        """[T',h,w,C] -> what the family's projector takes."""
        return self.family.model_class.merge_patches(self, grid)

    def end_embedding(self) -> Tensor | None:
        """What ends a video for the language model [1, text hidden size], if anything does."""
        return self.family.model_class.end_embedding(self)


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
            {"family": family, "__module__": module, "__doc__": family.generation_class.__doc__},
        )
        for family in FAMILIES.values()
    }
