"""Teachers from Hugging Face ids and local folders: a ViT, or the vision tower and projector of a whole VLM."""

from dataclasses import dataclass
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import transformers
from huggingface_hub import metadata_load
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead
from transformers.utils import cached_file
from typing_extensions import override

from liteframe.models.checkpoints import check_weight_index, checkpoint_source
from liteframe.models.teacher.base import ImageTower, Teacher, TeacherFeatures, probe_logits
from liteframe.models.teacher.vit_weights import VitWeights, vit_weights
from liteframe.models.vlm.family import FAMILIES, Family
from liteframe.texts import read_json


@dataclass(frozen=True)
class VitClass:
    """What loading and reading a transformers ViT needs to know of its class.

    Attributes:
        name: of the class in transformers.
        cls: whether it has a cls token.
        registers: whether its config has num_register_tokens.
        rotary: whether it turns queries and keys by their position.
        interpolates: whether its forward resamples positions only when asked; the others do so unasked.
        whole: whether the config is that of a whole model, of which the class is the half that sees.
    """

    name: str
    cls: bool = True
    registers: bool = False
    rotary: bool = False
    interpolates: bool = False
    whole: bool = False


# By model_type.
VIT_CLASSES = {
    "internvl_vision": VitClass("InternVLVisionModel"),
    "dinov2": VitClass("Dinov2Model"),
    "dinov2_with_registers": VitClass("Dinov2WithRegistersModel", registers=True),
    "dinov3_vit": VitClass("DINOv3ViTModel", registers=True, rotary=True),
    "vit": VitClass("ViTModel", interpolates=True),
    "clip": VitClass("CLIPVisionModel", interpolates=True, whole=True),
    "clip_vision_model": VitClass("CLIPVisionModel", interpolates=True),
    "siglip": VitClass("SiglipVisionModel", cls=False, interpolates=True, whole=True),
    "siglip_vision_model": VitClass("SiglipVisionModel", cls=False, interpolates=True),
}

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


class HfTower(ImageTower):
    """A transformers ViT, its output split into patches and prefix.

    Args:
        model: the ViT.
        layer: number of the hidden state to take, as a VLM's `vision_feature_layer`; None takes last_hidden_state,
            which some families normalize once more.
    """

    def __init__(self, model: Any, layer: int | None = None):
        super().__init__()
        self.model, self.layer = model, layer
        config = model.config
        self.patch_size = _square("patch_size", config.patch_size)
        self.grid = _square("image_size", config.image_size) // self.patch_size
        self.kind = VIT_CLASSES[config.model_type]
        self.registers: int = config.num_register_tokens if self.kind.registers else 0
        pools = [part for part in model.modules() if isinstance(part, SiglipMultiheadAttentionPoolingHead)]
        self.pool = pools[0] if pools else None

    @override
    def forward_images(self, images: Tensor) -> TeacherFeatures:
        arguments = {"interpolate_pos_encoding": True} if self.kind.interpolates else {}
        if self.layer is None:
            tokens = self.model(pixel_values=images, **arguments).last_hidden_state  # [M,prefix+h*w,C]
        else:
            output = self.model(pixel_values=images, output_hidden_states=True, **arguments)
            tokens = output.hidden_states[self.layer]  # [M,prefix+h*w,C]
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        patches = tokens[:, self.kind.cls + self.registers :].unflatten(1, grid)  # [M,h,w,C]
        if self.kind.cls:
            return TeacherFeatures(patches, tokens[:, 0], None)
        if self.pool is None:
            return TeacherFeatures(patches, None, None)
        return TeacherFeatures(patches, None, siglip_logits(self.pool, tokens).unflatten(1, grid))

    @override
    def vit_weights(self) -> VitWeights:
        config = self.model.config
        return vit_weights(
            self.model.state_dict(),
            heads=config.num_attention_heads,
            cls=self.kind.cls,
            registers=self.registers,
            grid=(self.grid, self.grid),
            rotary=self.kind.rotary,
            activation=ACT2FN[config.hidden_act],
        )


class VlmProjector(nn.Module):
    """A VLM's road from patch features to the language model's input: [...,h,w,C] -> [...,h/f,w/f,C_llm].

    Attributes:
        factor: patches per side, f, that become one token.
    """

    def __init__(self, family: Family, config: Any, mlp: nn.Module):
        super().__init__()
        self.mlp = mlp
        self.factor = family.merge_factor(config)
        # The family's own model merges patches; all that it reads for this is its config.
        self.merge_patches = MethodType(family.model_class.merge_patches, SimpleNamespace(config=config))

    def forward(self, patches: Tensor) -> Tensor:
        """[...,h,w,C] in any floating type; computed in that of the projector's weights, inside autocast too."""
        dtype = next(self.mlp.parameters()).dtype
        with torch.autocast(patches.device.type, enabled=False):
            return self.mlp(self.merge_patches(patches.to(dtype)))


def siglip_logits(pool: Any, tokens: Tensor) -> Tensor:
    """What SigLIP's pooling probe attends to: [M,N,C] -> [M,N], see probe_logits."""
    attention = pool.attention
    (query, key, _), (bias, _, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    return probe_logits(tokens, pool.probe[0, 0], (query, bias), key, attention.num_heads)


def load_hf(
    name: str,
    *,
    pretrained: bool,
    dtype: torch.dtype | None,
    image_mean: tuple[float, float, float] | None = None,
    image_std: tuple[float, float, float] | None = None,
    **kwargs: Any,
) -> Teacher:
    """Load from a Hugging Face id or local folder; keyword arguments go to `from_pretrained` (revision, token, ...).

    Raises:
        ValueError: no such checkpoint, an unsupported architecture, incomplete weights, or unstated preprocessing.
    """
    source = checkpoint_source(name)
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    config = _config(source, hub)
    dtype = dtype or torch.float32
    processor = _processor(source, hub)
    mean = _statistics(source, "image_mean", image_mean, processor)
    std = _statistics(source, "image_std", image_std, processor)
    projector = layer = None
    if family := FAMILIES.get(config.model_type):
        _check_vlm(source, config, family.feature_strategy)
        half = _build(family.teacher_half, source, config, pretrained, dtype, kwargs)
        model, layer = half.model.vision_tower, family.feature_layer
        projector = VlmProjector(family, config, half.model.multi_modal_projector)
    else:
        kind = VIT_CLASSES[config.model_type]
        vision_config = config.vision_config if kind.whole else config
        model = _build(getattr(transformers, kind.name), source, vision_config, pretrained, dtype, kwargs)
    tower = HfTower(model, layer)
    return Teacher(
        tower,
        name=name,
        dim=model.config.hidden_size,
        patch_size=tower.patch_size,
        image_size=_square("image_size", model.config.image_size),
        image_mean=mean,
        image_std=std,
        resize="crop" if processor.get("do_center_crop") else "squash",
        license=_license(source, hub) if pretrained else None,
        projector=projector,
    )


def _config(name: str, hub: dict[str, Any]) -> Any:
    try:
        # The raw file first: AutoConfig would offer to run a checkpoint's own code.
        model_type = PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type")
        if model_type in (*FAMILIES, *VIT_CLASSES):
            return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a folder with a transformers config.json nor a known id: {error}"
        ) from error
    raise ValueError(
        f"{name} has model_type {model_type!r}; teachers can be {', '.join((*FAMILIES, *VIT_CLASSES))}, or "
        "timm/<model>. "
        "InternVL must be in transformers' own format (names that end in -hf)"
    )


def _build(cls: Any, name: str, config: Any, pretrained: bool, dtype: torch.dtype, kwargs: dict[str, Any]) -> Any:
    if not pretrained:
        return cls(config).to(dtype)
    check_weight_index(name)
    try:
        model, report = cls.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights of {name} cannot be loaded: {error}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    # A pooler is not used, and checkpoints often come without it.
    lacking = [key for key in lacking if not key.startswith("pooler.")]
    if lacking:
        raise ValueError(f"the weights of {name} lack {', '.join(lacking[:6])} ({len(lacking)} in all)")
    return model


def _check_vlm(name: str, config: Any, strategy: str) -> None:
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != strategy:
        raise ValueError(
            f"{name} feeds its projector from layer {config.vision_feature_layer} with strategy "
            f"{config.vision_feature_select_strategy!r}; only (-1, {strategy!r}) is supported for a {config.model_type}"
        )


def _square(field: str, value: int | list[int] | tuple[int, ...]) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"teacher's {field}={value} is not square")
    return sides.pop()


def _repository_file(name: str, file: str, hub: dict[str, Any]) -> Path | None:
    path = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False, **hub
    )
    return None if path is None else Path(path)


def _processor(name: str, hub: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's image preprocessing as it stands in its file: class defaults of processors differ from it."""
    for file in ("preprocessor_config.json", "processor_config.json"):
        path = _repository_file(name, file, hub)
        if path is None:
            continue
        values = read_json(path)
        values = values.get("image_processor", values)
        if "image_mean" in values:
            return values
    return {}


def _statistics(
    name: str, field: str, given: tuple[float, float, float] | None, processor: dict[str, Any]
) -> tuple[float, float, float]:
    value = given or processor.get(field)
    if value is None:
        raise ValueError(
            f"{name} has no preprocessor_config.json or processor_config.json with {field}; "
            f"copy the file there, or pass load_teacher(..., {field}=(r, g, b))"
        )
    r, g, b = value
    return (float(r), float(g), float(b))


def _license(name: str, hub: dict[str, Any]) -> str | None:
    """`license` in the front matter of the checkpoint's model card."""
    card = _repository_file(name, "README.md", hub)
    license = (metadata_load(card) or {}).get("license") if card else None
    return license if isinstance(license, str) else None
