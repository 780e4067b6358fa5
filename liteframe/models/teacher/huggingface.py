"""Teachers from Hugging Face ids and local folders: a ViT, or the vision tower and projector of a whole VLM."""

from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import cached_file

from liteframe.models.checkpoints import check_weight_index, checkpoint_source
from liteframe.models.teacher.base import Statistics, Teacher
from liteframe.models.teacher.glm4v import GLM_TOWERS, Glm4vTower
from liteframe.models.teacher.hf_vit import REFUSED, VIT_CLASSES, HfTower
from liteframe.models.teacher.licenses import license_of
from liteframe.models.teacher.qwen import QWEN_TOWERS, QwenTower
from liteframe.models.teacher.timm_vit import TimmTower
from liteframe.models.vlm.family import FAMILIES
from liteframe.models.vlm.family_record import Family
from liteframe.texts import read_json

# Whole Video LLMs of which only the tower is known here: transformers' PreTrainedModel, and the tower's name in
# `model`.
WHOLE_MODELS = {
    "gemma3": ("Gemma3PreTrainedModel", "vision_tower"),
    "gemma4": ("Gemma4PreTrainedModel", "vision_tower"),
    "glm4v": ("Glm4vPreTrainedModel", "visual"),
    "glm4v_moe": ("Glm4vMoePreTrainedModel", "visual"),
    "idefics3": ("Idefics3PreTrainedModel", "vision_model"),
    "paligemma": ("PaliGemmaPreTrainedModel", "vision_tower"),
    "perception_lm": ("PerceptionLMPreTrainedModel", "vision_tower"),
    "smolvlm": ("SmolVLMPreTrainedModel", "vision_model"),
}
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")


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
            tokens = self.mlp(self.merge_patches(patches.to(dtype)))  # some put all of them in one row
        height, width = (side // self.factor for side in patches.shape[-3:-1])
        return tokens.reshape(*patches.shape[:-3], height, width, -1)


def load_hf(
    name: str,
    *,
    pretrained: bool,
    dtype: torch.dtype | None,
    image_mean: tuple[float, float, float] | None = None,
    image_std: tuple[float, float, float] | None = None,
    deepstack: bool = False,
    **kwargs: Any,
) -> Teacher:
    """Load from a Hugging Face id or local folder; keyword arguments go to `from_pretrained` (revision, token, ...).

    Raises:
        ValueError: no such checkpoint, an unsupported architecture, incomplete weights, unstated preprocessing, or
            deepstack of a tower without.
    """
    source = checkpoint_source(name)
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    config = _config(source, hub)
    dtype = dtype or torch.float32
    projector = layer = None
    if family := FAMILIES.get(config.model_type):
        if family.feature_strategy is not None:
            _check_vlm(source, config, family.feature_strategy)
        half = _build(family.teacher_half, source, config, pretrained, dtype, kwargs)
        model, layer = half.tower, family.feature_layer
        mergers = family.deepstack(model) if deepstack and family.deepstack is not None else None
        projector = VlmProjector(family, config, mergers or half.projector)
    elif config.model_type in WHOLE_MODELS:
        base, attribute = WHOLE_MODELS[config.model_type]
        half = _build(_tower_alone(base, attribute), source, config, pretrained, dtype, kwargs)
        model = getattr(half.model, attribute)
    else:
        kind = VIT_CLASSES[config.model_type]
        vision_config = config.vision_config if kind.whole else config
        model = _build(getattr(transformers, kind.name), source, vision_config, pretrained, dtype, kwargs)
    tower = make_tower(model, layer, deepstack)
    processor = _processor(source, hub)
    mean, std = _normalization(source, tower.statistics, image_mean, image_std, processor)
    return Teacher(
        tower,
        name=name,
        dim=tower.dim,
        patch_size=tower.patch_size,
        image_size=tower.image_size,
        image_mean=mean,
        image_std=std,
        resize="crop" if processor.get("do_center_crop") else "squash",
        license=license_of(_repository_file(source, "README.md", hub)) if pretrained else None,
        projector=projector,
    )


def make_tower(model: Any, layer: int | None = None, deepstack: bool = False) -> HfTower | QwenTower | TimmTower:
    """The tower of a transformers ViT; `layer` as of HfTower, `deepstack` and errors as of QwenTower."""
    if model.config.model_type in QWEN_TOWERS:
        return QwenTower(model, deepstack)
    if deepstack:
        raise ValueError(f"deepstack is for towers of Qwen3-VL, not of a {model.config.model_type}; leave it out")
    if model.config.model_type in GLM_TOWERS:
        return Glm4vTower(model)
    return TimmTower(model.timm_model) if model.config.model_type == "timm_wrapper" else HfTower(model, layer)


def _tower_alone(base: str, attribute: str) -> Any:
    """The tower of a Video LLM as a class whose from_pretrained reads nothing of the rest.

    Args:
        base: name of transformers' PreTrainedModel of the family, so that its conversion of weight names applies.
        attribute: the tower's name in `model`.
    """

    class TowerAlone(getattr(transformers, base)):  # type: ignore[misc]
        _keys_to_ignore_on_load_unexpected = [rf"^(?!model\.{attribute}\.)"]

        def __init__(self, config: Any):
            super().__init__(config)
            vision = config.vision_config
            if vision.model_type == "timm_wrapper":  # else it takes frames of one size only
                vision.model_args = {**(vision.model_args or {}), "dynamic_img_size": True}
            self.model = nn.Module()
            setattr(self.model, attribute, AutoModel.from_config(vision))
            self.post_init()

    return TowerAlone


def _config(name: str, hub: dict[str, Any]) -> Any:
    known = (*FAMILIES, *WHOLE_MODELS, *VIT_CLASSES)
    try:
        # The raw file first: AutoConfig would offer to run a checkpoint's own code.
        model_type = PreTrainedConfig.get_config_dict(name, **hub)[0].get("model_type")
        if model_type in known:
            return AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is neither a folder with a transformers config.json nor a known id: {error}"
        ) from error
    if reason := REFUSED.get(str(model_type).removesuffix("_vision")):
        raise ValueError(
            f"{name} (model_type {model_type!r}) cannot be a teacher: {reason}; take a tower that sees each frame, or "
            f"each pair of frames, by itself: {', '.join(known)}, or timm/<model>"
        )
    raise ValueError(
        f"{name} has model_type {model_type!r}; teachers can be {', '.join(known)}, or timm/<model>. "
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
        raise ValueError(
            f"the weights of {name} lack {', '.join(lacking[:6])} ({len(lacking)} in all), which would be random: name "
            "a folder that holds the whole model, as its authors or save_pretrained wrote it"
        )
    return model


def _check_vlm(name: str, config: Any, strategy: str) -> None:
    if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != strategy:
        raise ValueError(
            f"{name} feeds its projector from layer {config.vision_feature_layer} with strategy "
            f"{config.vision_feature_select_strategy!r}; only (-1, {strategy!r}) is supported for a {config.model_type}"
        )


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


def _normalization(
    name: str,
    own: Statistics | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    processor: dict[str, Any],
) -> Statistics:
    """Mean and std that frames get: the tower's own, else those given, else those in the checkpoint's files."""
    if own is not None:
        if mean or std:
            raise ValueError(f"{name} normalizes frames by itself, with {own}; leave out image_mean and image_std")
        return own
    if processor.get("do_normalize") is False:
        processor = {**processor, "image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    return _statistics(name, "image_mean", mean, processor), _statistics(name, "image_std", std, processor)


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
