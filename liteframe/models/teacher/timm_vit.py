"""Teachers from timm: `timm/<model>`, any plain ViT (VisionTransformer or Eva)."""

from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import AttentionPoolLatent
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.base import ImageTower, Teacher, TeacherFeatures, probe_logits
from liteframe.models.teacher.vit_weights import REMEDY, VitWeights, vit_weights


class TimmTower(ImageTower):
    """timm's `forward_features`, split into patches and prefix."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.patch_size: int = model.patch_embed.patch_size[0]
        self.pool = model.attn_pool if isinstance(model.attn_pool, AttentionPoolLatent) else None

    @override
    def forward_images(self, images: Tensor) -> TeacherFeatures:
        tokens = self.model.forward_features(images)  # [M,prefix+h*w,C]
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        patches = tokens[:, self.model.num_prefix_tokens :].unflatten(1, grid)  # [M,h,w,C]
        if self.model.cls_token is not None:
            return TeacherFeatures(patches, tokens[:, 0], None)
        if self.pool is None:
            return TeacherFeatures(patches, None, None)
        return TeacherFeatures(patches, None, latent_logits(self.pool, tokens).unflatten(1, grid))

    @override
    def vit_weights(self) -> VitWeights:
        block: Any = self.model.blocks[0]
        cls = self.model.cls_token is not None
        if type(block) not in (Block, EvaBlock):  # blocks that norm afterwards have weights of the same names
            raise ValueError(f"the teacher's {type(block).__name__} is not a plain pre-norm ViT block, {REMEDY}")
        return vit_weights(
            self.model.state_dict(),
            heads=block.attn.num_heads,
            cls=cls,
            registers=self.model.num_prefix_tokens - cls,
            grid=tuple(self.model.patch_embed.grid_size),
            rotary=isinstance(self.model, Eva) and self.model.rope is not None,
            activation=block.mlp.act,
        )


def latent_logits(pool: Any, tokens: Tensor) -> Tensor:
    """What the latent of a pooling head attends to: [M,N,C], the normalized tokens, -> [M,N], see probe_logits.

    Raises:
        ValueError: the head is none of those of timm's plain ViTs.
    """
    if pool.latent_len != 1 or not isinstance(pool.k_norm, nn.Identity) or not isinstance(pool.q, nn.Linear):
        raise ValueError("the teacher's pooling head has several latents, or norms or no layer before its attention")
    key, _ = pool.kv.weight.chunk(2)
    return probe_logits(tokens, pool.latent[0, 0], (pool.q.weight, pool.q.bias), key, pool.num_heads)


def load_timm(name: str, *, pretrained: bool, dtype: torch.dtype | None, **kwargs: Any) -> Teacher:
    """Build `timm/<model>`; keyword arguments go to timm.create_model.

    Raises:
        ValueError: timm does not know the model, or it is not a plain ViT.
    """
    model_name = name.removeprefix("timm/")
    if not timm.is_model(model_name):
        near = ", ".join(timm.list_models(f"*{model_name.split('.')[0][:12]}*")[:5])
        raise ValueError(
            f"timm {timm.__version__} has no model named {model_name!r}" + (f"; near: {near}" if near else "")
        )
    entry = timm.model_entrypoint(model_name)
    if entry.__module__.rsplit(".", 1)[-1] not in ("vision_transformer", "eva"):
        raise ValueError(f"{name} is not a plain ViT: a teacher must keep one patch grid through all its blocks")
    if pretrained:
        kwargs = {"pretrained_cfg_overlay": _safetensors_only(model_name), **kwargs}
    try:
        model: Any = timm.create_model(
            model_name, pretrained=pretrained, num_classes=0, dynamic_img_size=True, **kwargs
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be built: {error} (pretrained weights need the Hugging Face hub or its local cache)"
        ) from error
    data = resolve_data_config({}, model=model)
    tower = TimmTower(model.to(dtype or torch.float32))
    return Teacher(
        tower,
        name=name,
        dim=model.embed_dim,
        patch_size=tower.patch_size,
        image_size=model.patch_embed.img_size[0],
        image_mean=tuple(data["mean"]),
        image_std=tuple(data["std"]),
        resize="squash" if data["crop_mode"] == "squash" else "crop",
        license=model.pretrained_cfg.get("license") if pretrained else None,
    )


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
