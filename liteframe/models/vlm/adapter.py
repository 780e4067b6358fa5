"""A LoRA adapter on a Video LLM: loaded whole and on the model that it was trained on, or refused; merged.

Knows PEFT and models; it imports no training code, so that exports can use it too. PEFT itself is imported where an
adapter is at hand: whoever loads a model without one neither waits for it nor needs it.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from liteframe.models.student.io import weight_misfits
from liteframe.texts import read_json

if TYPE_CHECKING:
    from peft import PeftModel

# In the names of the weights that PEFT saves with an adapter.
ADAPTER_MARKS = (".lora_", ".modules_to_save.")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Beside PEFT's files: what the adapter was trained on.
ORIGIN = "liteframe.json"


def load_adapter(model: PreTrainedModel, adapter: str | os.PathLike[str], memory: str | None = None) -> PeftModel:
    """Put a saved adapter on a model, unmerged and frozen.

    Args:
        model: a Video LLM.
        adapter: its folder.
        memory: name of the memory that will read with it, if it must be trained for one.

    Raises:
        ValueError: the folder has no whole safetensors adapter (pickled ones are not read), or one that was trained on
            another Video LLM or encoder, or for another memory.
    """
    from peft import PeftModel, get_peft_model_state_dict

    check_trained_for(adapter, memory)
    check_origin(model, adapter)
    with adapter_file(adapter) as path, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error below
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing. is deprecated")  # PEFT's own code
        adapted = PeftModel.from_pretrained(model, adapter, ignore_mismatched_sizes=True)
        # PEFT ignores what has no place, and leaves at its start what is missing.
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        if problems := weight_misfits(load_file(path), expected):
            raise ValueError(f"the adapter {adapter} was not trained on this model, which it does not fit: {problems}")
    return adapted


def check_origin(model: PreTrainedModel, adapter: str | os.PathLike[str]) -> None:
    """Compare a model with what its adapter notes of the one it was trained on; this is the one proof that they fit.

    Weights are compared where they are held in the dtype of the training; other dtypes round them otherwise.

    Raises:
        ValueError: it is another. An adapter that LiteFrame did not make notes nothing, and early ones no weights.
    """
    path = Path(adapter) / ORIGIN
    if not path.is_file():
        return
    noted, present = read_json(path, "copy the adapter again"), origin(model)
    digest = present["weights_sha256"]
    same_weights = noted.get("weights_sha256", digest) == digest or present["dtype"] != noted["dtype"]
    if not (same_weights and present["model_type"] == noted["model_type"]):
        raise ValueError(
            f"the adapter {adapter} was not trained on this model but on {noted['vlm']} with the encoder "
            f"{noted['encoder']}; load it with these"
        )


def trained_for(adapter: str | os.PathLike[str]) -> str | None:
    """Name of the memory that an adapter was trained for; None: it reads plain prompts."""
    path = Path(adapter) / ORIGIN
    return read_json(path, "copy the adapter again").get("memory") if path.is_file() else None


def check_trained_for(adapter: str | os.PathLike[str], memory: str | None) -> None:
    """Refuse an adapter that was trained to read otherwise than it would here.

    Raises:
        ValueError: it was trained for another memory, or for one where a plain prompt is read, or the reverse.
    """
    noted = trained_for(adapter)
    if noted == memory:
        return
    if memory is not None:
        raise ValueError(
            f"memory {memory!r} needs an adapter that was trained for it (model.{memory} of `liteframe align`); "
            f"{adapter} was trained for {'plain prompts' if noted is None else f'memory {noted!r}'}"
        )
    raise ValueError(
        f"the adapter {adapter} was trained for memory {noted!r}, not for plain prompts; give --memory {noted}:BUDGET "
        f"of `liteframe ask`, `stream` or `eval --online`, or load_video_llm(..., memory={noted!r}); nothing else "
        "reads with it"
    )


def origin(model: PreTrainedModel) -> dict[str, str]:
    """What an adapter recognizes its model by: family, dtype, and a hash of all weights by name and bits."""
    digest = weights_digest(model)
    return {"model_type": model.config.model_type, "dtype": str(model.dtype), "weights_sha256": digest}


def weights_digest(model: nn.Module) -> str:
    """A hash of all weights by name and bits."""
    names, parameters = zip(*sorted(model.named_parameters()), strict=True)
    digest = hashlib.sha256()
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock; a core takes half a minute for 8B
        hashes = pool.map(lambda parameter: hashlib.sha256(_bits(parameter)).digest(), parameters)
        for name, bits in zip(names, hashes, strict=True):
            digest.update(name.encode() + bits)
    return digest.hexdigest()


@contextmanager
def adapter_file(adapter: str | os.PathLike[str], name: str = ADAPTER_WEIGHTS) -> Iterator[Path]:
    """The weights of an adapter folder, or another file of weights there, for reading.

    Raises:
        ValueError: there are none in safetensors, or what is done inside finds them damaged.
    """
    weights = Path(adapter) / name
    if not weights.is_file():
        raise ValueError(f"{weights} does not exist; {adapter} is not an adapter saved with safetensors")
    try:
        yield weights
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error}); copy it again") from error


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Add the adapter's update to the weights and return the plain model, which save_pretrained can write.

    Each sum is made in float32 and rounded once to the dtype of the weight.
    """
    from peft.tuners.lora import LoraLayer

    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            dtype, weight.data = weight.dtype, weight.data.float()
            layer.merge(safe_merge=True)
            weight.data = weight.data.to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All adapters are already merged")
        return model.merge_and_unload()


def frozen_digest(model: nn.Module) -> str:
    """A hash of all parameters that are not trained and belong to no adapter, by name and bits."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad and not any(mark in name for mark in ADAPTER_MARKS):
            digest.update(name.encode())
            digest.update(_bits(parameter))
    return digest.hexdigest()


def _bits(parameter: torch.Tensor) -> memoryview:
    return parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
