"""Teachers from timm: `timm/<model>`, any ViT that keeps one patch grid through its blocks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import AttentionPoolLatent
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.base import HALVES, Teacher, VitTower, transformer_blocks
from liteframe.models.teacher.saliency import probe_logits
from liteframe.models.teacher.vit_weights import REMEDY, VitWeights, vit_weights


@dataclass(frozen=True)
class TimmKind:
    """What the towers of one of timm's files have in common.

    Attributes:
        arguments: of timm.create_model, so that frames of any size are taken.
        tower: from the model that timm makes to the part that gives patches by `forward_features`.
        image_size: from the tower: pixels per side that it is made for.
        grid: from the tower: rows and columns of its position table.
        state: its weights, under names that vit_weights knows.
        halves: whether it brings pixels of 0 to 1 to -1 to 1 by itself. Frames come so, a student learns on the same.
    """

    arguments: dict[str, Any]
    tower: Callable[[Any], Any] = lambda model: model
    image_size: Callable[[Any], int] = lambda model: model.patch_embed.img_size[0]
    grid: Callable[[Any], tuple[int, int]] = lambda model: tuple(model.patch_embed.grid_size)
    state: Callable[[Any], dict[str, Tensor]] = lambda model: model.state_dict()
    halves: bool = False


def _encoder(model: Any) -> Any:
    """Without the classifier that timm wraps around an encoder."""
    return getattr(model, "encoder", model)


def _gemma4_encoder(model: Any) -> Any:
    encoder = _encoder(model)
    encoder.global_pool = ""  # or it refuses frames that do not divide into what it pools
    return encoder


def _without_merger(model: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("merger.")}


def _naflex_state(model: Any) -> dict[str, Tensor]:
    """Its linear layer over patches, channels last, as a convolution; its position table as rows of tokens."""
    state = {name.removeprefix("embeds."): tensor for name, tensor in model.state_dict().items()}
    weight, size = state.pop("proj.weight"), model.embeds.patch_size[0]
    state["patch_embed.proj.weight"] = (
        weight.unflatten(1, (size, size, -1)).permute(0, 3, 1, 2) if weight.ndim == 2 else weight
    )  # [C,3,p,p]
    if "proj.bias" in state:
        state["patch_embed.proj.bias"] = state.pop("proj.bias")
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"].flatten(1, -2)  # [1,h*w,C]
    return state


PLAIN = TimmKind({"dynamic_img_size": True})
# By the file of timm that a model comes from.
KINDS = {
    "vision_transformer": PLAIN,
    "eva": PLAIN,
    "naflexvit": TimmKind(
        {},
        image_size=lambda model: model.embeds.pos_embed_grid_size[0] * model.embeds.patch_size[0],
        grid=lambda model: tuple(model.embeds.pos_embed_grid_size),
        state=_naflex_state,
    ),
    "qwen3_vit": TimmKind(
        {},
        tower=_encoder,
        grid=lambda model: (model.pos_embed_grid_size, model.pos_embed_grid_size),
        state=_without_merger,
    ),
    "gemma4_vit": TimmKind(
        {},
        tower=_gemma4_encoder,
        image_size=lambda model: 48 * model.patch_size[0],  # its tables of positions have no size of their own
        halves=True,
    ),
}


class TimmTower(VitTower):
    """timm's `forward_features`, split into patches and prefix."""

    def __init__(self, model: Any):
        kind = KINDS[type(model).__module__.rsplit(".", 1)[-1]]
        embedding = getattr(model, "embeds", model)
        pool = getattr(model, "attn_pool", None)
        super().__init__(
            model,
            patch_size=(model.embeds if hasattr(model, "embeds") else model.patch_embed).patch_size[0],
            cls=int(getattr(embedding, "cls_token", None) is not None),
            prefix=model.num_prefix_tokens,
            pool=pool if _has_probe(pool) else None,
        )
        self.kind, self.dim, self.image_size = kind, model.embed_dim, kind.image_size(model)
        self.statistics = HALVES if kind.halves else None

    @override
    def tokens(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images * 0.5 + 0.5 if self.kind.halves else images)
        return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens  # [M,prefix+h*w,C]

    @override
    def probe(self, pool: Any, tokens: Tensor) -> Tensor:
        key, _ = pool.kv.weight.chunk(2)
        return probe_logits(tokens, pool.latent[0, 0], (pool.q.weight, pool.q.bias), key, pool.num_heads)

    @override
    def vit_weights(self) -> VitWeights:
        block: Any = transformer_blocks(self.model)[0]
        if type(block) not in (Block, EvaBlock):  # blocks that norm afterwards have weights of the same names
            raise ValueError(f"the teacher's {type(block).__name__} is not a plain pre-norm ViT block, {REMEDY}")
        return vit_weights(
            self.kind.state(self.model),
            heads=block.attn.num_heads,
            cls=self.cls > 0,
            registers=self.prefix - self.cls,
            grid=self.kind.grid(self.model),
            rotary=getattr(self.model, "rope", None) is not None,
            activation=block.mlp.act,
        )


def _has_probe(pool: Any) -> bool:
    """Whether a head is attention by one learned query, without norms in between."""
    return (
        isinstance(pool, AttentionPoolLatent)
        and pool.latent_len == 1
        and pool.pos_embed is None
        and isinstance(pool.k_norm, nn.Identity)
        and isinstance(pool.q, nn.Linear)
    )


def load_timm(name: str, *, pretrained: bool, dtype: torch.dtype | None, **kwargs: Any) -> Teacher:
    """Build `timm/<model>`; keyword arguments go to timm.create_model.

    Raises:
        ValueError: timm does not know the model, or it is not a ViT of one patch grid.
    """
    model_name = name.removeprefix("timm/")
    if not timm.is_model(model_name):
        near = ", ".join(timm.list_models(f"*{model_name.split('.')[0][:12]}*")[:5])
        raise ValueError(
            f"timm {timm.__version__} has no model named {model_name!r}" + (f"; near: {near}" if near else "")
        )
    kind = KINDS.get(timm.model_entrypoint(model_name).__module__.rsplit(".", 1)[-1])
    if kind is None:
        raise ValueError(f"{name} is not a plain ViT: a teacher must keep one patch grid through all its blocks")
    if pretrained:
        kwargs = {"pretrained_cfg_overlay": _safetensors_only(model_name), **kwargs}
    try:
        model: Any = timm.create_model(
            model_name, pretrained=pretrained, **_no_classes(model_name), **kind.arguments, **kwargs
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be built: {error} (pretrained weights need the Hugging Face hub or its local cache)"
        ) from error
    data = resolve_data_config({}, model=model)
    tower = TimmTower(kind.tower(model.to(dtype or torch.float32)))
    mean, std = tower.statistics or (tuple(data["mean"]), tuple(data["std"]))
    return Teacher(
        tower,
        name=name,
        dim=tower.dim,
        patch_size=tower.patch_size,
        image_size=tower.image_size,
        image_mean=mean,
        image_std=std,
        resize="squash" if data["crop_mode"] == "squash" else "crop",
        license=model.pretrained_cfg.get("license") if pretrained else None,
    )


def _no_classes(model_name: str) -> dict[str, Any]:
    """Encoders without a classifier do not take the argument that leaves it out."""
    return {} if model_name.split(".")[0].endswith("_enc") else {"num_classes": 0}


def _safetensors_only(model_name: str) -> dict[str, str]:
    """Name the weight file, or timm falls back to pickles where the hub has no safetensors under the usual names.

    Raises:
        ValueError: timm knows the model's weights only as a pickle.
    """
    config = timm.get_pretrained_cfg(model_name)
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no weights in safetensors format for {model_name}")
    file = config.hf_hub_filename or "model.safetensors"
    return {"hf_hub_filename": file if file.endswith(".safetensors") else "open_clip_model.safetensors"}
