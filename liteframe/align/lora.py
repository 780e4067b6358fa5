"""LoRA on the language model and nothing else, the proof of it, and 4-bit layers under it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.io import weight_misfits
from liteframe.models.vlm.adapter import adapter_file, check_origin
from liteframe.models.vlm.family import family_of
from liteframe.texts import read_json

# As our models of every family name them (see VlmBackbone).
PROJECTOR, ENCODER = "multi_modal_projector", "vision_tower"
NF4_BLOCK = 64  # values that share a scale

# Of adapter_config.json: where it came from, what is compared layer by layer, what has no meaning without a setting
# that is compared; and dropout, which is no part of the update and which each run has of its own.
NOT_COMPARED = frozenset(
    (
        "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config",
        "task_type", "target_modules", "modules_to_save", "megatron_core", "qalora_group_size", "lora_dropout",
    )
)  # fmt: skip
# These begin with the model's own weights; others change them, and the adapter fits no other.
PLAIN_STARTS = (True, False, "gaussian")


@dataclass
class LoraSettings:
    """Low-rank update of the language model's attention and MLP layers (LiteFrame, arXiv 2605.17260).

    Attributes:
        rank: of the update.
        alpha: the update is scaled by alpha / rank.
        dropout: on the update's input.
    """

    rank: int = 4
    alpha: float = 8
    dropout: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora: rank >= 1, alpha > 0 and dropout in [0, 1) are needed, got {self}")


def add_lora(
    model: PreTrainedModel,
    settings: LoraSettings,
    *,
    train_projector: bool = False,
    train_encoder: bool = False,
    start_from: str | os.PathLike[str] | None = None,
) -> PeftModel:
    """Freeze `model` and put trainable LoRA layers on its language model.

    A projector or encoder that is trained too is copied and saved with the adapter; what is trained is float32.

    Args:
        model: a Video LLM with a LiteFrame encoder.
        settings: of the LoRA layers.
        train_projector: train the projector as a whole.
        train_encoder: train the encoder as a whole.
        start_from: folder of an adapter to continue; a projector or encoder in it that is not trained is kept frozen.

    Raises:
        ValueError: the language model lacks the layers that LoRA is meant for, a layer elsewhere matched, or the
            adapter to start from has other layers, another rank or alpha, makes its update in another way, or was
            trained on another model.
    """
    names = family_of(model.config.model_type).lora_layers
    expected = language_model_layers(model, names)
    trained_whole = [name for name, train in ((PROJECTOR, train_projector), (ENCODER, train_encoder)) if train]
    held = _adapter_config(start_from)
    saved_whole = held.get("modules_to_save") or []
    if start_from is not None:
        check_origin(model, start_from)
    frozen_whole = [name for name in saved_whole if name not in trained_whole]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides by it, a float is as good
        lora_dropout=settings.dropout,
        # A list of suffixes would also hit the vision towers, whose attention layers bear the same names.
        target_modules=rf".*language_model.*\.({'|'.join(names)})",
        modules_to_save=[*trained_whole, *frozen_whole] or None,
        task_type="CAUSAL_LM",
    )
    _refuse_another_update(start_from, held, config.to_dict())
    adapted = get_peft_model(model, config)
    if start_from is not None:
        _load(adapted, Path(start_from), fresh=[name for name in trained_whole if name not in saved_whole])
    for name, parameter in adapted.named_parameters():
        if any(f".{part}.modules_to_save." in name for part in frozen_whole):
            parameter.requires_grad_(False)
    _check_scope(adapted, expected, trained_whole)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _adapter_config(adapter: str | os.PathLike[str] | None) -> dict[str, Any]:
    """What PEFT notes of an adapter; nothing where there is none."""
    if adapter is None:
        return {}
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{adapter} is not an adapter folder: it has no adapter_config.json")
    return read_json(path, "copy the adapter again")


def _refuse_another_update(adapter: str | os.PathLike[str] | None, held: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse an adapter whose update is scaled or made otherwise, which its weights do not show."""
    names = {"r": "lora.rank", "lora_alpha": "lora.alpha"}
    start = held.get("init_lora_weights", True)
    held = held | {"init_lora_weights": True if start in PLAIN_STARTS else start}
    different = [
        f"{names.get(key, key)} is {value!r} there and {ours.get(key)!r} here"
        for key, value in held.items()
        # What is empty is not in use.
        if key not in NOT_COMPARED and (value or None) != (ours.get(key) or None)
    ]
    if adapter is not None and different:
        raise ValueError(
            f"the adapter {adapter} does not fit this run: {'; '.join(different)}; give this run what is there, or "
            "start without model.init_adapter"
        )


def _load(model: PeftModel, adapter: Path, fresh: list[str]) -> None:
    """Load an adapter's weights into a model that has the same layers, and the `fresh` parts besides."""
    with adapter_file(adapter) as path:
        saved = load_file(path)
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tensor for name, tensor in own.items() if not any(f".{part}." in name for part in fresh)}
    if problems := weight_misfits(saved, expected):
        raise ValueError(
            f"the adapter {adapter} does not fit this run: {problems}; use the same Video LLM and encoder, "
            "and an adapter on the same layers"
        )
    set_peft_model_state_dict(model, own | saved)


def language_model_layers(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Full names of the linear layers that LoRA is meant for, given how they are called within a block.

    Raises:
        ValueError: there is none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    inside = [name for name in linear if "language_model" in name.split(".")]
    adaptable = [name for name in inside if name.split(".")[-1] in layers]
    if not adaptable:
        kinds = sorted({name.split(".")[-1] for name in inside})
        raise ValueError(
            f"the language model has no layer named {', '.join(layers)}; its linear layers are "
            f"{', '.join(kinds) or 'none'}"
        )
    return adaptable


def encoder_of(model: PeftModel) -> LiteFrameEncoder:
    """The encoder that sees: the adapter's where it brings one."""
    tower = model.get_base_model().model.get_submodule(ENCODER)
    return getattr(tower, "modules_to_save", {"default": tower})["default"].encoder


def adapted_layers(model: nn.Module) -> list[str]:
    """Names, in the model without adapters, of the layers that carry a LoRA update."""
    names = {name.split(".lora_A")[0] for name, _ in model.named_modules() if ".lora_A" in name}
    return sorted(name.removeprefix("base_model.model.") for name in names)


def describe(model: PeftModel) -> str:
    """What will be trained, to be read before a run starts."""
    layers = adapted_layers(model)
    names = family_of(model.get_base_model().config.model_type).lora_layers
    kinds = {kind: sum(layer.endswith(f".{kind}") for layer in layers) for kind in names}
    trained = [p for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    whole = {part: _is_trained(model, part) for part in (PROJECTOR, ENCODER)}
    return "\n".join(
        [
            f"LoRA on {len(layers)} layers of the language model: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            f"  first {layers[0]}, last {layers[-1]}",
            f"projector: {'trained' if whole[PROJECTOR] else 'frozen'}; "
            f"encoder: {'trained' if whole[ENCODER] else 'frozen'}",
            f"{sum(p.numel() for p in trained):,} of {total:,} parameters are trained",
        ]
    )


def _is_trained(model: nn.Module, part: str) -> bool:
    return any(p.requires_grad for name, p in model.named_parameters() if f".{part}." in name)


def _check_scope(model: PeftModel, expected: list[str], trained_whole: list[str]) -> None:
    layers = adapted_layers(model)
    if layers != sorted(expected):
        extra, lacking = sorted(set(layers) - set(expected)), sorted(set(expected) - set(layers))
        raise ValueError(f"LoRA matched layers it should not ({extra}) or missed layers ({lacking})")
    allowed = re.compile(r"\.lora_[AB]\." + "".join(rf"|\.{part}\.modules_to_save\." for part in trained_whole))
    stray = [name for name, p in model.named_parameters() if p.requires_grad and not allowed.search(name)]
    if stray:
        raise ValueError(f"parameters outside LoRA would be trained: {', '.join(stray[:5])}")


def quantize_frozen(model: PeftModel, device: torch.device) -> int:
    """Replace what LoRA is put on by its 4-bit form, in place; returns how many layers.

    Args:
        model: of which no more than one layer at a time is on `device` before it is rounded.
        device: that rounds, and where the 4-bit layers stay.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise ValueError("model.quantize: nf4 needs bitsandbytes: pip install 'liteframe[quantize]'") from error
    count = 0
    for wrapper in list(model.modules()):
        base = getattr(wrapper, "base_layer", None)
        if isinstance(base, nn.Linear) and hasattr(wrapper, "lora_A"):
            dtype = base.weight.dtype
            small = bnb.nn.Linear4bit(
                base.in_features, base.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
            )
            small.weight = bnb.nn.Params4bit(
                base.weight.data, requires_grad=False, quant_type="nf4", blocksize=NF4_BLOCK, module=small
            )
            small.bias = base.bias
            wrapper.base_layer = small.to(device)  # rounds; later moves only copy
            count += 1
    return count
