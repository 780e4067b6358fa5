"""What a score depends on: digests of weights and files, versions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

# What changes a model's answers; model cards and training left-overs do not.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "*.model", "*.py")
REPORTS = ("parity.json", "report.json")


def model_digest(source: str | os.PathLike[str]) -> str:
    """SHA-256 over names and contents of a model's weights, configuration, tokenizer and code.

    Args:
        source: a folder, or the id of a Hugging Face model that has been downloaded.

    Raises:
        ValueError: there is no such file in it.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), local_files_only=True))
    files = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name not in REPORTS}
    if not files:
        raise ValueError(f"{source}: holds no file of a model ({', '.join(MODEL_FILES)})")
    return files_digest(files)


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, whatever their order and folder."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: (path.name, str(path))):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner` -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
