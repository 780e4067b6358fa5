"""Where an encoder or a Video LLM comes from, as far as the files beside it tell."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from transformers.utils import cached_file


def run_report(run: Path) -> dict[str, Any]:
    """The report.json of a run, or {} where there is none (an encoder that was moved away from its run).

    Raises:
        ValueError: the report is not a JSON object.
    """
    path = run / "report.json"
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); restore it, or remove it to export without it"
        ) from error
    if not isinstance(report, dict):
        raise ValueError(f"{path} does not hold a JSON object; restore it, or remove it to export without it")
    return report


def checkpoint_licence(name: str) -> str | None:
    """`license` in the front matter of the model card of a checkpoint (local folder or Hugging Face id), if stated."""
    path = cached_file(
        name,
        "README.md",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    licence = (metadata_load(path) or {}).get("license") if path else None
    return licence if isinstance(licence, str) else None
