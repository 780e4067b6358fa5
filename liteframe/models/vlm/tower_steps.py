"""From pixels to the language model's tokens step by step, where a family's tower sees each frame by itself.

Reducers act between these steps, and read the tower's last attention. Shapes: F frames of HxW pixels, (h,w) patch grid,
(h',w') grid of the language model's tokens, C channels of the tower, D of the language model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from liteframe.models.vlm.internvl import pixel_shuffle, shuffle_factor


class LastAttention(NamedTuple):
    """The modules that give queries and keys [F,N,heads*d] to the block whose output the projector reads."""

    queries: nn.Module
    keys: nn.Module
    heads: int


@dataclass(frozen=True)
class TowerSteps:
    """The steps of a family; each takes transformers' model first.

    Attributes:
        states: pixels [F,3,H,W] -> [F,cls+h*w,C], what the projector reads, with its cls token first if there is one.
        cls: whether there is one.
        last_attention: of the tower.
        merge: patches [F,h,w,C] -> [F,h',w',C'], where the projector takes them merged.
        project: what is merged -> [F,h',w',D], or [M,C'] of it -> [M,D]; where nothing is, patches -> [F,h',w',D].
        pool: numbers of patches [F,h,w,c] -> [F,h',w',c], the mean of what becomes one token.
    """

    states: Callable[[Any, Tensor], Tensor]
    cls: bool
    last_attention: Callable[[Any], LastAttention]
    merge: Callable[[Any, Tensor], Tensor] | None
    project: Callable[[Any, Tensor], Tensor]
    pool: Callable[[Any, Tensor], Tensor]


# Frames that a tower takes at once.
FRAMES_AT_ONCE = 32


def _internvl_states(model: Any, pixels: Tensor) -> Tensor:
    return model.model.vision_tower(pixel_values=pixels).last_hidden_state


def _internvl_attention(model: Any) -> LastAttention:
    attention = model.model.vision_tower.encoder.layer[-1].attention
    return LastAttention(attention.q_norm, attention.k_norm, attention.num_heads)  # what they get, where no norm is


def _internvl_merge(model: Any, patches: Tensor) -> Tensor:
    return pixel_shuffle(patches, shuffle_factor(model.config.downsample_ratio))


def _internvl_pool(model: Any, x: Tensor) -> Tensor:
    factor = shuffle_factor(model.config.downsample_ratio)
    return x.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).mean((2, 4))


def _llava_onevision_states(model: Any, pixels: Tensor) -> Tensor:
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]


def _llava_onevision_attention(model: Any) -> LastAttention:
    attention = model.model.vision_tower.encoder.layers[-1].self_attn
    return LastAttention(attention.q_proj, attention.k_proj, attention.num_heads)


def _llava_onevision_project(model: Any, patches: Tensor) -> Tensor:
    return _llava_onevision_pool(model, model.model.multi_modal_projector(patches))


def _llava_onevision_pool(model: Any, x: Tensor) -> Tensor:
    size = [-(-side // 2) for side in x.shape[1:3]]
    return F.interpolate(x.movedim(-1, 1), size=size, mode="bilinear").movedim(1, -1)


INTERNVL_STEPS = TowerSteps(
    states=_internvl_states,
    cls=True,
    last_attention=_internvl_attention,
    merge=_internvl_merge,
    project=lambda model, merged: model.model.multi_modal_projector(merged),
    pool=_internvl_pool,
)

LLAVA_ONEVISION_STEPS = TowerSteps(
    states=_llava_onevision_states,
    cls=False,
    last_attention=_llava_onevision_attention,
    merge=None,
    project=_llava_onevision_project,
    pool=_llava_onevision_pool,
)
