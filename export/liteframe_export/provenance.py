"""Where an encoder or a Video LLM comes from, as far as the files beside it tell."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from liteframe.models.checkpoints import checkpoint_source
from liteframe.models.student.elastic import refuse_modes
from liteframe.models.student.io import read_config
from liteframe.models.teacher.licenses import license_of
from liteframe.models.vlm.adapter import load_adapter
from liteframe.models.vlm.load import load_video_llm
from liteframe.texts import read_json

ALIGNED = ("lma", "tpo")  # kinds of runs that leave an adapter


def run_report(run: Path) -> dict[str, Any]:
    """The report.json of a run, or {} where there is none (an encoder that was moved away from its run).

    Raises:
        ValueError: the report is not a JSON object.
    """
    path = run / "report.json"
    if not path.is_file():
        return {}
    report = read_json(path, "restore it, or remove it to export without it")
    if not isinstance(report, dict):
        raise ValueError(f"{path} does not hold a JSON object; restore it, or remove it to export without it")
    return report


def checkpoint_license(name: str) -> str | None:
    """The license that the model card of a checkpoint (local folder or Hugging Face id) states, if it does."""
    path = cached_file(
        checkpoint_source(name),
        "README.md",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return license_of(path)


@dataclass(frozen=True)
class Parts:
    """Where the parts of a Video LLM are.

    Attributes:
        vlm: folder or Hugging Face id of the InternVL.
        encoder: folder of the LiteFrame encoder.
        adapter: folder of the PEFT adapter that was trained on the two, or None.
        mode: of an elastic encoder, the one that the Video LLM is left with.
    """

    vlm: str
    encoder: str
    adapter: str | None = None
    mode: str | None = None

    @property
    def adapter_report(self) -> dict[str, Any]:
        """report.json of the LMA run that the adapter lies in; {} where there is none."""
        return {} if self.adapter is None else run_report(Path(self.adapter).resolve().parent)


def parts_of_run(
    run: str | os.PathLike[str], *, vlm: str | None = None, encoder: str | None = None, mode: str | None = None
) -> Parts:
    """The parts of a run of LMA or TPO, by its report.json; `vlm` and `encoder` say where they are now if they moved.

    Raises:
        ValueError: the folder is not a finished LMA run.
    """
    report = run_report(Path(run))
    if report.get("kind") not in ALIGNED:
        raise ValueError(
            f"{run} is not a finished LMA run: it has no report.json of kind {' or '.join(map(repr, ALIGNED))}; "
            "name the parts with --vlm, --encoder and --adapter"
        )
    return Parts(vlm or report["vlm"], encoder or report["encoder"], str(Path(run) / "adapter"), mode)


def load_parts(parts: Parts) -> tuple[Any, Any]:
    """Model (with the adapter on it, unmerged) and processor, in the dtype of the InternVL, on the CPU.

    In a mode of an elastic encoder, the adapter is merged: it fits the whole encoder only.

    Raises:
        ValueError: a part cannot be loaded, the adapter was trained on other weights, or the encoder is elastic and no
            mode of it is named.
    """
    try:
        refuse_modes(read_config(Path(parts.encoder)), parts.mode)
        if parts.mode is not None:
            return load_video_llm(parts.vlm, encoder=parts.encoder, adapter=parts.adapter, mode=parts.mode)
        model, processor = load_video_llm(parts.vlm, encoder=parts.encoder)
    except OSError as error:
        raise ValueError(
            f"{parts.vlm} with {parts.encoder} cannot be loaded (--vlm and --encoder say where they are): {error}"
        ) from error
    if parts.adapter is None:
        return model, processor
    return load_adapter(model, parts.adapter).eval(), processor
