"""Teachers by name: `timm/<model>`, a Hugging Face id, or a local folder (a ViT, or a whole Video LLM)."""

from dataclasses import dataclass, field
from functools import partial
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
    deepstack: bool = False,
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
        deepstack: of Qwen3-VL: features of the inner blocks that its language model reads follow those of the last one,
            in the same tokens.
        **kwargs: for timm.create_model, or for transformers' from_pretrained; for the latter also `image_mean` and
            `image_std` where the checkpoint states none.

    Raises:
        ValueError: unknown name, unsupported architecture, incomplete weights, a saliency that the teacher does not
            have, deepstack of a tower without, or a request to run remote code.
    """
    name = str(name)
    if kwargs.get("trust_remote_code"):
        raise ValueError("load_teacher never runs code from a checkpoint; remove trust_remote_code")
    kwargs.pop("trust_remote_code", None)
    if name.startswith("timm/") and deepstack:
        raise ValueError(f"deepstack is for towers of Qwen3-VL, not for {name}; leave it out")
    load = load_timm if name.startswith("timm/") else partial(load_hf, deepstack=deepstack)
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
        deepstack: whether the student learns the features of inner blocks, too, that a Qwen3-VL's language model reads.
        options: further keyword arguments.
    """

    name: str
    pretrained: bool = True
    deepstack: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Teacher:
        """The teacher, frozen, on the CPU; raises as load_teacher."""
        return load_teacher(self.name, pretrained=self.pretrained, deepstack=self.deepstack, **self.options)
