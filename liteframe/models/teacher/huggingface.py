"""Teachers from Hugging Face ids and local folders: a ViT, or the vision tower and projector of a whole VLM."""

import inspect
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import metadata_load
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, InternVLConfig, LlavaOnevisionConfig, PreTrainedConfig
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector, InternVLPreTrainedModel
from transformers.models.llava_onevision.modeling_llava_onevision import (
    LlavaOnevisionMultiModalProjector,
    LlavaOnevisionPreTrainedModel,
)
from transformers.utils import cached_file

from liteframe.files import check_weight_index, read_json
from liteframe.models.teacher.base import Teacher, TeacherFeatures, Tower, head_mean_log_attention
from liteframe.models.teacher.projector import VlmProjector, shuffle_factor
from liteframe.models.teacher.vit_weights import VitWeights, vit_weights

# model_type of a config -> the class that holds its vision tower.
VIT_CLASSES = {
    "internvl_vision": "InternVLVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "vit": "ViTModel",
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
}

HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


class HfTower(Tower):
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
        self.has_cls = not config.model_type.startswith("siglip")
        self.prefix_tokens = int(self.has_cls) + getattr(config, "num_register_tokens", 0)
        self.pool = getattr(model, "head", None) or getattr(getattr(model, "vision_model", None), "head", None)
        # The others resample positions unasked.
        flag = "interpolate_pos_encoding"
        self.arguments = {flag: True} if flag in inspect.signature(type(model).forward).parameters else {}

    def forward(self, images: Tensor) -> TeacherFeatures:
        """[M,3,H,W] -> patches [M,h,w,C], query [M,C] or None, logits [M,h,w] or None."""
        if self.layer is None:
            tokens = self.model(pixel_values=images, **self.arguments).last_hidden_state
        else:
            output = self.model(pixel_values=images, output_hidden_states=True, **self.arguments)
            tokens = output.hidden_states[self.layer]
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        patches = tokens[:, self.prefix_tokens :].unflatten(1, grid)
        if self.has_cls:
            return TeacherFeatures(patches, tokens[:, 0], None)
        if self.pool is None:
            return TeacherFeatures(patches, None, None)
        return TeacherFeatures(patches, None, probe_logits(self.pool, tokens).unflatten(1, grid))

    def vit_weights(self) -> VitWeights:
        """See Tower."""
        return vit_weights(
            self.model.state_dict(),
            heads=self.model.config.num_attention_heads,
            prefix_tokens=self.prefix_tokens,
            grid=(self.grid, self.grid),
        )


class InternVLVisionHalf(InternVLPreTrainedModel):
    """The part of InternVLForConditionalGeneration that sees.

    Loaded by transformers itself, so its weight-name conversion applies; the language model's tensors are never read.
    """

    _keys_to_ignore_on_load_unexpected = [r"language_model", r"lm_head"]

    def __init__(self, config: InternVLConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.vision_tower = AutoModel.from_config(config.vision_config)
        self.model.multi_modal_projector = InternVLMultiModalProjector(config)
        self.post_init()


class LlavaOnevisionVisionHalf(LlavaOnevisionPreTrainedModel):
    """The part of LlavaOnevisionForConditionalGeneration that sees; see InternVLVisionHalf."""

    _keys_to_ignore_on_load_unexpected = [r"language_model", r"lm_head", r"image_newline"]

    def __init__(self, config: LlavaOnevisionConfig):
        super().__init__(config)
        self.model = nn.Module()
        self.model.vision_tower = AutoModel.from_config(config.vision_config)
        self.model.multi_modal_projector = LlavaOnevisionMultiModalProjector(config)
        self.post_init()


# model_type of a VLM's config -> the half of it that sees, and how it takes features from its tower.
VLM_HALVES = {"internvl": (InternVLVisionHalf, "default"), "llava_onevision": (LlavaOnevisionVisionHalf, "full")}


def probe_logits(pool: Any, tokens: Tensor) -> Tensor:
    """Log of the attention of SigLIP's pooling probe, averaged over heads: [M,N,C] -> [M,N] (methods 15)."""
    attention = pool.attention
    heads, dim = attention.num_heads, attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    query = nn.functional.linear(pool.probe[0, 0], weight[:dim], bias[:dim]).unflatten(-1, (heads, -1))
    key = nn.functional.linear(tokens, weight[dim : 2 * dim], bias[dim : 2 * dim]).unflatten(-1, (heads, -1))
    return head_mean_log_attention((query.float() * key.float()).sum(-1).movedim(-1, 1) * (dim // heads) ** -0.5)


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
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    config = _config(name, hub)
    dtype = dtype or torch.float32
    processor = _processor(name, hub)
    mean = _statistics(name, "image_mean", image_mean, processor)
    std = _statistics(name, "image_std", image_std, processor)
    projector = layer = None
    if config.model_type in VLM_HALVES:
        half_class, strategy = VLM_HALVES[config.model_type]
        _check_vlm(name, config, strategy)
        half = _build(half_class, name, config, pretrained, dtype, kwargs)
        model = half.model.vision_tower
        # LLaVA-OneVision's projector reads single tokens, of the state before the tower's last norm.
        folds = config.model_type == "internvl"
        layer = None if folds else config.vision_feature_layer
        factor = shuffle_factor(config.downsample_ratio) if folds else 1
        projector = VlmProjector(half.model.multi_modal_projector, factor)
    else:
        cls = getattr(transformers, VIT_CLASSES[config.model_type])
        vision_config = getattr(config, "vision_config", config)
        model = _build(cls, name, vision_config, pretrained, dtype, kwargs)
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
        license=_license(name, hub) if pretrained else None,
        projector=projector,
    )


def _config(name: str, hub: dict[str, Any]) -> Any:
    try:
        # The raw file first: AutoConfig would offer to run a checkpoint's own code.
        model_type = PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type")
        if model_type in (*VLM_HALVES, *VIT_CLASSES):
            return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a folder with a transformers config.json nor a known id: {error}"
        ) from error
    raise ValueError(
        f"{name} has model_type {model_type!r}; teachers can be {', '.join((*VLM_HALVES, *VIT_CLASSES))}, or "
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
