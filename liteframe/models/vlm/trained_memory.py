"""What an adapter brings for a memory beside its LoRA layers: one table, and one road from training to a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import nn

from liteframe.models.student.io import weight_misfits
from liteframe.models.vlm.adapter import ORIGIN, adapter_file
from liteframe.models.vlm.clip_summarizer import ClipSettings, add_clip_summarizer
from liteframe.models.vlm.qformer import QFormerSettings, add_qformer
from liteframe.models.vlm.summary_tokens import SummarySettings, add_summary_tokens
from liteframe.texts import read_json


class TrainedMemory(NamedTuple):
    """What a memory reads with.

    Attributes:
        part: attribute of the language model that holds it.
        settings: dataclass of its training, an option of LMA by the memory's name.
        add: gives a Video LLM the part as training begins with it: (model, processor, settings) -> part.
    """

    part: str
    settings: type
    add: Callable[[Any, Any, Any], nn.Module]

    @property
    def weights(self) -> str:
        """File of an adapter folder."""
        return f"{self.part}.safetensors"

    @property
    def words(self) -> str:
        """What it is called."""
        return self.part.replace("_", " ")


TRAINED: dict[str, TrainedMemory] = {
    "summary": TrainedMemory("summary_tokens", SummarySettings, add_summary_tokens),
    "learned_clips": TrainedMemory("clip_summarizer", ClipSettings, add_clip_summarizer),
    "qformer": TrainedMemory("qformer", QFormerSettings, add_qformer),
}


def memory_of(model: Any) -> str | None:
    """Name of the memory that a Video LLM has been given a part for."""
    language_model = model.model.language_model
    return next((name for name, memory in TRAINED.items() if hasattr(language_model, memory.part)), None)


def part_of(model: Any) -> Any:
    """What a Video LLM has for its memory; None if it has none."""
    name = memory_of(model)
    return None if name is None else getattr(model.model.language_model, TRAINED[name].part)


def check_memory(model: Any, memory: str, trained: bool) -> None:
    """Refuse a memory that a model was not trained for, and a model that was trained for another.

    Raises:
        ValueError: says which.
    """
    held = memory_of(model)
    if held == (memory if trained else None):
        return
    if held is None:
        raise ValueError(
            f"memory {memory!r} reads with an adapter's {TRAINED[memory].words}, which this model does not have; load "
            f"it with an adapter that was trained for it: load_video_llm(..., adapter=..., memory={memory!r})"
        )
    raise ValueError(
        f"this model's adapter was trained for memory {held!r}, not for {memory!r}; give that memory, or another "
        "adapter"
    )


def save_part(model: Any, folder: Path) -> dict[str, Any]:
    """Write what a Video LLM has for its memory into the folder of an adapter; returns what that must note of it."""
    name = memory_of(model)
    if name is None:
        return {}
    part = part_of(model)
    state = {key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}
    save_file(state, folder / TRAINED[name].weights)
    return {"memory": name, name: asdict(part.settings)}


def load_weights(model: Any, adapter: str | os.PathLike[str]) -> None:
    """Load what `save_part` wrote into what the model has for the same memory.

    Raises:
        ValueError: it is missing, damaged, or of another language model or other settings.
    """
    name = memory_of(model)
    assert name is not None
    with adapter_file(adapter, TRAINED[name].weights) as path:
        saved, part = load_file(path), part_of(model)
        if problems := weight_misfits(saved, part.state_dict()):
            raise ValueError(f"{path} does not fit: {problems}; use the same Video LLM and the same model.{name}")
        part.load_state_dict(saved)


def load_part(model: Any, processor: Any, adapter: str | os.PathLike[str], name: str) -> None:
    """Give a Video LLM what an adapter was trained with for a memory, frozen.

    Raises:
        ValueError: the adapter's notes or weights are damaged, or of another language model.
    """
    path = Path(adapter) / ORIGIN
    try:
        settings = TRAINED[name].settings(**read_json(path, "copy the adapter again")[name])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not say what it was trained with for memory {name!r}: {error!r}") from error
    TRAINED[name].add(model, processor, settings).requires_grad_(False)
    load_weights(model, adapter)
