"""The ViTs of transformers that can be teachers: one record each, and one tower for all of them.

Shapes: M images of H x W pixels, (h,w) patch grid, C channels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.models.siglip2.modeling_siglip2 import Siglip2MultiheadAttentionPoolingHead
from typing_extensions import override

from liteframe.models.teacher.base import HALVES, Statistics, VitTower
from liteframe.models.teacher.saliency import probe_logits
from liteframe.models.teacher.vit_weights import VitWeights, vit_weights


def _states(model: Any, layer: int | None, **inputs: Any) -> Tensor:
    if layer is None:
        return model(**inputs).last_hidden_state
    return model(**inputs, output_hidden_states=True).hidden_states[layer]


def _run(model: Any, images: Tensor, layer: int | None) -> Tensor:
    return _states(model, layer, pixel_values=images)


def _run_resampling(model: Any, images: Tensor, layer: int | None) -> Tensor:
    return _states(model, layer, pixel_values=images, interpolate_pos_encoding=True)


def _run_siglip2(model: Any, images: Tensor, layer: int | None) -> Tensor:
    """As its processor cuts an image up (rows of patches, channels last), with no patch of padding."""
    patches = _cut(images, model.config.patch_size).permute(0, 1, 3, 4, 2).flatten(2)  # [M,h*w,p*p*3]
    grid = [side // model.config.patch_size for side in images.shape[2:]]
    shapes = torch.tensor([grid] * len(images), device=images.device)
    mask = torch.ones(patches.shape[:2], dtype=torch.int64, device=images.device)
    return _states(model, layer, pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)


def _run_gemma4(model: Any, images: Tensor, _: int | None) -> Tensor:
    """What its pooler takes; it brings pixels of 0 to 1 to -1 to 1 by itself."""
    size = model.config.patch_size
    patches = _cut(images * 0.5 + 0.5, size).permute(0, 1, 3, 4, 2).flatten(2)  # [M,h*w,p*p*3]
    rows, columns = (torch.arange(side // size, device=images.device) for side in images.shape[2:])
    places = torch.cartesian_prod(rows, columns).flip(-1).expand(len(images), -1, -1)  # [M,h*w,2], (x, y)
    padding = torch.zeros(patches.shape[:2], dtype=torch.bool, device=images.device)
    embedded = model.patch_embedder(patches, places, padding)  # [M,h*w,C]
    return model.encoder(inputs_embeds=embedded, attention_mask=~padding, pixel_position_ids=places).last_hidden_state


def _cut(images: Tensor, size: int) -> Tensor:
    """[M,3,H,W] -> [M,h*w,3,size,size], row by row."""
    return images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _siglip2_state(model: Any) -> dict[str, Tensor]:
    """Its linear layer over patches, channels last, as a convolution."""
    state, name, size = dict(model.state_dict()), "embeddings.patch_embedding.weight", model.config.patch_size
    state[name] = state[name].unflatten(1, (size, size, 3)).permute(0, 3, 1, 2)  # [C,3,p,p]
    return state


def _radio_state(model: Any) -> dict[str, Tensor]:
    """Its linear layer over patches as a convolution, and the first of its cls tokens."""
    state, size = dict(model.state_dict()), model.config.patch_size
    state.pop("summary_idxs")
    tokens = state.pop("embeddings.cls_register_token")  # [cls and registers,C]
    state["embeddings.cls_token"], state["embeddings.register_tokens"] = tokens[:1], tokens[1:]
    weight = state.pop("embeddings.patch_projection.weight")  # [C,3*p*p]
    state["embeddings.patch_embeddings.weight"] = weight.unflatten(1, (3, size, size))
    state["embeddings.pos_embed"] = state.pop("embeddings.position_embedding")
    return state


def _own_normalization(model: Any) -> None:
    """Frames come normalized, so that a student learns on the same ones."""
    model.make_preprocessor_external()


@dataclass(frozen=True)
class VitClass:
    """What loading and reading a transformers ViT needs to know of its class.

    Attributes:
        name: of the class in transformers.
        cls: number of its cls tokens.
        prefix: from its config: tokens before the patches.
        rotary: whether it turns queries and keys by their position.
        run: (model, images [M,3,H,W], number of a hidden state or None) -> [M,prefix+h*w,C].
        image_size: from its config: pixels per side that it is made for.
        grid: from its config: patches per side that its position table covers, if it has one.
        state: its weights, under names that vit_weights knows.
        statistics: from its config: mean and std where the model normalizes by itself and has no file that says so.
        prepare: changes a model that is built.
        whole: whether the config is that of a whole model, of which the class is the half that sees.
    """

    name: str
    cls: int = 1
    prefix: Callable[[Any], int] = lambda config: 1
    rotary: bool = False
    run: Callable[[Any, Tensor, int | None], Tensor] = _run
    image_size: Callable[[Any], int] = lambda config: square("image_size", config.image_size)
    grid: Callable[[Any], int] | None = None
    state: Callable[[Any], Mapping[str, Tensor]] = lambda model: model.state_dict()
    statistics: Callable[[Any], Statistics] | None = None
    prepare: Callable[[Any], None] | None = None
    whole: bool = False


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


def _none(config: Any) -> int:
    return 0


SIGLIP2 = VitClass(
    "Siglip2VisionModel",
    cls=0,
    prefix=_none,
    run=_run_siglip2,
    image_size=lambda config: math.isqrt(config.num_patches) * config.patch_size,
    state=_siglip2_state,
)
# By model_type.
VIT_CLASSES = {
    "internvl_vision": VitClass("InternVLVisionModel"),
    "dinov2": VitClass("Dinov2Model"),
    "dinov2_with_registers": VitClass("Dinov2WithRegistersModel", prefix=_registers),
    "dinov3_vit": VitClass("DINOv3ViTModel", prefix=_registers, rotary=True),
    "vit": VitClass("ViTModel", run=_run_resampling),
    "ijepa": VitClass("IJepaModel", cls=0, prefix=_none, run=_run_resampling),
    "pixio": VitClass("PixioModel", cls=8, prefix=lambda config: config.n_cls_tokens),
    "clip": VitClass("CLIPVisionModel", run=_run_resampling, whole=True),
    "clip_vision_model": VitClass("CLIPVisionModel", run=_run_resampling),
    "metaclip_2_vision_model": VitClass("MetaClip2VisionModel", run=_run_resampling),
    "siglip": VitClass("SiglipVisionModel", cls=0, prefix=_none, run=_run_resampling, whole=True),
    "siglip_vision_model": VitClass("SiglipVisionModel", cls=0, prefix=_none, run=_run_resampling),
    "siglip2_vision_model": SIGLIP2,
    "tipsv2_vision_model": VitClass("Tipsv2VisionModel", prefix=_registers),
    "smolvlm_vision": VitClass("SmolVLMVisionTransformer", cls=0, prefix=_none),
    "idefics3_vision": VitClass("Idefics3VisionTransformer", cls=0, prefix=_none),
    "gemma4_vision": VitClass(
        "Gemma4VisionModel",
        cls=0,
        prefix=_none,
        rotary=True,
        run=_run_gemma4,
        image_size=lambda config: 48 * config.patch_size,  # its tables of positions have no size of their own
        statistics=lambda config: HALVES,
    ),
    "radio": VitClass(
        "RadioModel",
        cls=3,
        prefix=lambda config: config.num_cls_tokens + config.num_registers,
        grid=lambda config: config.max_img_size // config.patch_size,
        state=_radio_state,
        statistics=lambda config: (tuple(config.norm_mean), tuple(config.norm_std)),
        prepare=_own_normalization,
    ),
}

CLIPS = "its attention runs over the frames of a clip, so that a frame has no features of its own"
# By model_type; what they are in checkpoints of a whole model, too.
REFUSED = {
    "kimi_k25": CLIPS,
    "minimax_m3_vl": CLIPS,
    "pe_video": CLIPS,
    "videomae": CLIPS,
    "vivit": CLIPS,
    "timesformer": CLIPS,
    "vjepa2": CLIPS,
    "gemma3n": "its tower is a convolutional network, without one patch grid from block to block",
    "dinov3_convnext": "it is a convolutional network, without one patch grid from block to block",
    "lfm3_vl": "eight of its fourteen blocks are convolutions, whose weights and attention have no counterpart",
    "minicpmv4_6": "it merges 2x2 patches after its sixth block, within the tower",
    "molmo2": "its projector reads two layers of the tower side by side, and a student gives one",
    "ovis2": "its language model reads probabilities of a visual vocabulary, no features",
}


class HfTower(VitTower):
    """A transformers ViT, its output split into patches and prefix.

    Args:
        model: the ViT.
        layer: number of the hidden state to take, as a VLM's `vision_feature_layer`; None takes last_hidden_state,
            which some families normalize once more.
    """

    def __init__(self, model: Any, layer: int | None = None):
        self.kind, self.layer = VIT_CLASSES[model.config.model_type], layer
        heads = (SiglipMultiheadAttentionPoolingHead, Siglip2MultiheadAttentionPoolingHead)
        pools = [part for part in model.modules() if isinstance(part, heads)]
        super().__init__(
            model,
            patch_size=square("patch_size", model.config.patch_size),
            cls=self.kind.cls,
            prefix=self.kind.prefix(model.config),
            pool=pools[0] if pools else None,
        )
        if self.kind.prepare:
            self.kind.prepare(model)
        self.dim = model.config.hidden_size
        self.image_size = self.kind.image_size(model.config)
        self.statistics = self.kind.statistics(model.config) if self.kind.statistics else None

    @override
    def tokens(self, images: Tensor) -> Tensor:
        return self.kind.run(self.model, images, self.layer)

    @override
    def probe(self, pool: Any, tokens: Tensor) -> Tensor:
        attention = pool.attention
        (query, key, _), (bias, _, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        return probe_logits(tokens, pool.probe[0, 0], (query, bias), key, attention.num_heads)

    @override
    def vit_weights(self) -> VitWeights:
        config = self.model.config
        side = self.kind.grid(config) if self.kind.grid else self.image_size // self.patch_size
        return vit_weights(
            self.kind.state(self.model),
            heads=config.num_attention_heads,
            cls=self.cls > 0,
            registers=self.prefix - (self.cls > 0),
            grid=(side, side),
            rotary=self.kind.rotary,
            activation=ACT2FN[getattr(config, "hidden_act", None) or config.hidden_activation],
        )


def square(field: str, value: int | list[int] | tuple[int, ...]) -> int:
    """The side of a size that a config gives as one number or as several equal ones.

    Raises:
        ValueError: they differ.
    """
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"teacher's {field}={value} is not square")
    return sides.pop()
