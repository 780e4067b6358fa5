"""Teachers by name: `timm/<model>`, a Hugging Face id, or a local folder (a ViT, or a whole Video LLM)."""

from dataclasses import dataclass, field
from typing import Any

import torch

from liteframe.models.teacher.base import Saliency, Teacher
from liteframe.models.teacher.huggingface import load_hf
from liteframe.models.teacher.timm_vit import load_timm


def load_teacher(
    name: str,
    *,
    pretrained: bool = True,
    dtype: torch.dtype | None = None,
    saliency: Saliency | None = None,
    **kwargs: Any,
) -> Teacher:
    """Load a frozen teacher.

    Args:
        name: "timm/<model>"; or the Hugging Face id or local folder of a ViT or of a whole Video LLM, of which only the
            vision tower and the projector are loaded; or "toyworld", the tiny InternVL that comes along.
        pretrained: False builds the architecture with random weights (a folder then needs no weight file).
        dtype: of the weights; None means float32.
        saliency: what WAP weighs patches by: "cls" (the cls token of their frame), "probe" (the attention of the
            pooling head's probe), "received" (the attention that they receive in the last block) or "mean" (all alike);
            None is the first of these that the teacher has.
        **kwargs: for timm.create_model, or for transformers' from_pretrained; for the latter also `image_mean` and
            `image_std` where the checkpoint states none.

    Raises:
        ValueError: unknown name, unsupported architecture, incomplete weights, a saliency that the teacher does not
            have, or a request to run remote code.
    """
    name = str(name)
    if kwargs.get("trust_remote_code"):
        raise ValueError("load_teacher never runs code from a checkpoint; remove trust_remote_code")
    kwargs.pop("trust_remote_code", None)
    load = load_timm if name.startswith("timm/") else load_hf
    teacher = load(name, pretrained=pretrained, dtype=dtype, **kwargs)
    if saliency is not None:
        teacher.weigh_by(saliency)
    return teacher


@dataclass
class TeacherSettings:
    """Which teacher, as `load_teacher` takes it.

    Attributes:
        name: "timm/<model>", a Hugging Face id, or a local folder (a ViT or a whole VLM).
        pretrained: False takes random weights (to try things out).
        options: further keyword arguments.
    """

    name: str
    pretrained: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Teacher:
        """The teacher, frozen, on the CPU; raises as load_teacher."""
        return load_teacher(self.name, pretrained=self.pretrained, **self.options)
