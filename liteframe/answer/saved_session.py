"""A session on disk: one safetensors file with its tensors, and its facts among the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from liteframe.files import write_atomically

FORMAT = 2


def write_session(path: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a session: whole or not at all."""
    write_atomically(path, save(tensors, metadata={"session": json.dumps({"format": FORMAT, **facts})}))


def read_session(path: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a session.

    Args:
        path: what `write_session` wrote.
        settings: facts that must be those of the file.

    Raises:
        ValueError: no such file, or that of a session with other settings.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give what StreamSession.save wrote")
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})["session"])
        tensors = load(path.read_bytes())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no saved session ({error!r}); give what StreamSession.save wrote") from error
    for name, value in {"format": FORMAT, **settings}.items():
        if facts.get(name) != value:
            raise ValueError(f"{path} was saved with {name} {facts.get(name)!r}, this session has {value!r}")
    return facts, tensors
