"""The folder around a traced encoder: graph, config, preprocessing, card, parity report."""

import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from liteframe.models.student import preprocessor_dict
from liteframe.models.student_config import LiteFrameConfig
from liteframe_export import card
from liteframe_export.files import staged, write_json
from liteframe_export.provenance import run_report

TIMES_HEAD = ("| video | difference | torch ms | this graph ms |", "|---|---|---|---|")


def write_graph_folder(
    encoder_dir: str | os.PathLike[str],
    config: LiteFrameConfig,
    out: str | os.PathLike[str],
    write: Callable[[Path], dict[str, Any]],
    usage: str,
    needs: str,
    dtype: str,
) -> dict[str, Any]:
    """Stage a folder, let `write` put the graph there and check it, and write the rest.

    Args:
        encoder_dir: the encoder's folder, whose run's report goes into the card.
        config: of the encoder.
        out: the new folder.
        write: puts the graph into the folder that it is given; returns the parity report.
        usage: code for the card, with the encoder's numbers left open.
        needs: what the code needs.
        dtype: of the graph.
    """
    t, h, w = config.compression
    numbers = {
        "folder": Path(out).name, "frames": config.clip_frames, "size": config.image_size, "t": t, "dtype": dtype,
        "row": config.patch_size * h, "column": config.patch_size * w, "dim": config.teacher_dim,
    }  # fmt: skip
    with staged(out) as folder:
        parity = write(folder)
        write_json(folder / "config.json", config.to_dict())
        write_json(folder / "preprocessor_config.json", preprocessor_dict(config))
        write_json(folder / "parity.json", parity)
        report = run_report(Path(encoder_dir).resolve().parent)
        text = _card(Path(out).name, config, report, parity, usage.format(**numbers), needs)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return parity


def _card(
    name: str, config: LiteFrameConfig, report: Mapping[str, Any], parity: Mapping[str, Any], usage: str, needs: str
) -> str:
    teacher = report.get("teacher") or {}
    t, h, w = config.compression
    about = (
        f"A video encoder distilled from {teacher.get('name') or 'an image teacher'} by LiteFrame (arXiv 2605.17260), "
        "as one graph for any number of clips, frames and pixels, as long as frames are a multiple of "
        f"{t} and pixels of {config.patch_size * h} x {config.patch_size * w}. Its features are in the teacher's own "
        f"space. Encode long videos clip after clip, {config.clip_frames} frames each, and fill up a last clip that is "
        f"no multiple of {t} frames with copies of its last frame, as in training."
    )
    rows = {
        "largest difference": f"{parity['max_relative_difference']:.2g} of the largest feature "
        f"(refused above {parity['tolerance']:g})",
        "compared": f"the encoder in float32 against this graph in {parity['dtype']}, on the CPU, at "
        f"{len(parity['cases'])} sizes",
        "with": ", ".join(f"{key} {value}" for key, value in parity["runtime"].items()),
        "exported by": f"liteframe {version('liteframe')}",
    }
    times = [
        f"| {case['video']} | {case['relative_difference']:.1e} | {case['torch_ms']:.1f} | {case['graph_ms']:.1f} |"
        for case in parity["cases"]
    ]
    return card.join(
        card.front_matter("feature-extraction", teacher.get("licence")),
        f"# {name}",
        about,
        f"## Use\n\nNeeds {needs}.\n\n```python\n{usage}```\n\n"
        "`LICENSE` (Apache-2.0) is that of the code above. It does not cover the weights in the graph: see below.",
        card.table("Encoder", card.encoder_rows(config)),
        card.teacher_section(teacher),
        *card.run_sections("Distillation", report),
        card.table("Parity", rows),
        "\n".join([f"On {parity['threads']} CPU threads:\n", *TIMES_HEAD, *times]),
    )
