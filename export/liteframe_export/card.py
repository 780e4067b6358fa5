"""The model card (README.md) of an export; of a graph, the whole folder around it."""

import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from liteframe.files import write_json
from liteframe.frame_size import frame_size
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.io import preprocessor_dict
from liteframe.models.teacher.licenses import warning
from liteframe_export.bundle import bundle
from liteframe_export.files import staged
from liteframe_export.provenance import run_report

UNKNOWN = "not recorded beside the weights"
TRANSFORMERS = ">=5.17,<5.25"  # as in setup.cfg; tests/export compares the two

ENCODER_USAGE = """\
import numpy as np
import torch
from transformers import AutoModel, AutoVideoProcessor

folder = "{folder}"  # this folder, or its id on a hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)

frames = np.zeros((20, 360, 640, 3), np.uint8)  # RGB frames [T,H,W,3] of your video, at 1 to 4 frames a second
pixels = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]  # [1,T,3,{height},{width}]
pixels = pixels.to(model.dtype)
with torch.inference_mode():  # long videos are encoded clip after clip, as in training
    clips = [model(clip).last_hidden_state for clip in pixels.split(model.config.clip_frames, dim=1)]
features = torch.cat(clips, dim=1)
print(tuple(features.shape))  # [1,T/{t},{rows},{columns},{dim}]
"""

VLM_USAGE = """\
import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "{folder}"  # this folder, or its id on a hub
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)

frames = np.zeros((20, 360, 640, 3), np.uint8)  # RGB frames [T,H,W,3] of your video, at 1 to 4 frames a second
question = "What happens in the video?"
chat = [{{"role": "user", "content": [{{"type": "video"}}, {{"type": "text", "text": question}}]}}]
prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
inputs = processor(text=prompt, videos=[frames]).to(model.device)
answer = model.generate(**inputs, do_sample=False, max_new_tokens=64)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
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
        if config.resize == "aspect":
            bundle(["liteframe.frame_size"], folder)
        write_json(folder / "parity.json", parity)
        report = run_report(Path(encoder_dir).resolve().parent)
        text = _graph_card(Path(out).name, config, report, parity, usage.format(**numbers), needs)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return parity


def _graph_card(
    name: str, config: LiteFrameConfig, report: Mapping[str, Any], parity: Mapping[str, Any], usage: str, needs: str
) -> str:
    teacher = report.get("teacher") or {}
    t, h, w = config.compression
    about = (
        f"A video encoder distilled from {teacher.get('name') or 'an image teacher'} by LiteFrame (arXiv 2605.17260), "
        "as one graph for any number of clips, frames and pixels, as long as frames are a multiple of "
        f"{t} and pixels of {config.patch_size * h} x {config.patch_size * w}. Its features are in the teacher's own "
        f"space. Encode long videos clip after clip, {config.clip_frames} frames each, and fill up a last clip that is "
        f"no multiple of {t} frames with copies of its last frame, as in training. A still image needs copies, too: "
        "LiteFrame itself encodes one as a frame of an endless still, cheaper and with other features, for which this "
        "graph has no way."
    )
    if config.resize == "aspect":
        about += (
            " Frames keep their aspect ratio: `frame_size` in `frame_size.py` of this folder says to which height and "
            f"width, given theirs, the budget ({config.image_size}, {config.image_size}), 'aspect' and the multiple "
            f"{config.pixel_multiple}."
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
    return join(
        front_matter("feature-extraction", teacher.get("license")),
        f"# {name}",
        about,
        f"## Use\n\nNeeds {needs}.\n\n```python\n{usage}```\n\n"
        "`LICENSE` (Apache-2.0) is that of the code above. It does not cover the weights in the graph: see below.",
        table("Encoder", encoder_rows(config)),
        teacher_section(report),
        *run_sections("Distillation", report),
        table("Parity", rows),
        "\n".join([f"On {parity['threads']} CPU threads:\n", *TIMES_HEAD, *times]),
    )


@dataclass(frozen=True)
class VlmSummary:
    """What the card of a Video LLM tells; reports are those of the runs, {} where there is none."""

    name: str
    vlm: str
    license: str | None
    adapter: str | None
    encoder: LiteFrameConfig
    encoder_report: Mapping[str, Any]
    adapter_report: Mapping[str, Any]


def encoder_card(
    name: str, config: LiteFrameConfig, parameters: int, report: Mapping[str, Any], parity: Mapping[str, Any]
) -> str:
    """Card of an exported encoder; `report` is its run's report.json."""
    teacher = report.get("teacher") or {}
    t, h, w = config.compression
    budget = (config.image_size, config.image_size)
    height, width = frame_size(360, 640, budget, config.resize, config.pixel_multiple)  # of frames as in ENCODER_USAGE
    rows, columns = height // config.patch_size // h, width // config.patch_size // w
    usage = ENCODER_USAGE.format(
        folder=name, height=height, width=width, t=t, rows=rows, columns=columns, dim=config.teacher_dim
    )
    about = (
        f"A video encoder of {parameters:,} parameters, distilled from {teacher.get('name') or 'an image teacher'} by "
        f"LiteFrame (arXiv 2605.17260). It turns a video `[B,T,3,H,W]` into features "
        f"`[B,T/{t},H/{config.patch_size * h},W/{config.patch_size * w},{config.teacher_dim}]` in the teacher's own "
        "feature space, so that the teacher's projector takes them as they are. A still image is `[B,1,3,H,W]` with "
        "`model(pixels, still=True)`, as where a Video LLM with this encoder sees one."
    )
    return join(
        front_matter("feature-extraction", teacher.get("license")),
        f"# {name}",
        about,
        use(usage),
        table("Encoder", encoder_rows(config)),
        teacher_section(report),
        *run_sections("Distillation", report),
        parity_section(parity),
    )


def vlm_card(summary: VlmSummary, parity: Mapping[str, Any]) -> str:
    """Card of an exported Video LLM."""
    config = summary.encoder
    tokens = f"{config.compression[0]} frames become one line `Frame{{a}}-{{b}}: <img>...</img>` of the prompt"
    about = (
        f"{summary.vlm} with a LiteFrame video encoder (arXiv 2605.17260) in place of its vision tower"
        f"{', and a LoRA update merged into its weights' if summary.adapter else ''}: it answers questions about "
        f"videos. {tokens}."
    )
    base = {
        "Video LLM": summary.vlm,
        "license": summary.license or "not stated in its files: see its own card",
    }
    return join(
        front_matter("video-text-to-text", summary.license),
        f"# {summary.name}",
        about,
        use(VLM_USAGE.format(folder=summary.name)),
        table("Made from", base) + f"\n\n{duties('Video LLM', summary.license)}",
        table("Encoder", encoder_rows(config)),
        teacher_section(summary.encoder_report),
        *run_sections("Distillation of the encoder", summary.encoder_report),
        *run_sections("Alignment with the language model", summary.adapter_report),
        parity_section(parity),
    )


def join(*sections: str) -> str:
    """Sections with a blank line between them."""
    return "\n\n".join(sections) + "\n"


def front_matter(task: str, license: str | None) -> str:
    """The YAML header of a model card, from which hubs read library, task and license."""
    values = {"library_name": "transformers", "pipeline_tag": task, "license": license or "other"}
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "tags: [liteframe, video]", "---"])


def use(code: str) -> str:
    """The section with the code; tests run it as it stands."""
    return (
        f"## Use\n\nNeeds torch, torchvision and transformers {TRANSFORMERS}; LiteFrame itself is not needed. "
        "`trust_remote_code=True` runs the Python files of this folder, which are LiteFrame's own.\n\n"
        f"```python\n{code}```\n\n"
        "`LICENSE` (Apache-2.0) is that of the Python files. It does not cover the weights: see below."
    )


def table(title: str, rows: Mapping[str, Any]) -> str:
    """A two-column table under a heading."""
    cells = {name: str(value).replace("|", "\\|").replace("\n", " ") for name, value in rows.items()}
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {cells[name]} |" for name in cells)])


def encoder_rows(config: LiteFrameConfig) -> dict[str, Any]:
    """Facts of the encoder's shape and preprocessing."""
    t, h, w = config.compression
    size = f"{config.image_size} x {config.image_size} pixels (`{config.resize}`)"
    if config.resize == "aspect":
        size = (
            f"in their own aspect ratio (`aspect`): at most {config.image_size} squared pixels, height a multiple of "
        )
        size += f"{config.pixel_multiple[0]} and width of {config.pixel_multiple[1]}"
    return {
        "frames": f"{size}, mean {list(config.image_mean)}, std {list(config.image_std)}",
        "clip": f"{config.clip_frames} frames are encoded together",
        "blocks": f"{config.depth} of width {config.dim}, {config.heads} heads, MLP {config.mlp_dim}",
        "compression": f"{t} frames x {h} x {w} patches become one token of {config.teacher_dim} channels",
    }


def teacher_section(report: Mapping[str, Any]) -> str:
    """Teacher, its identity, its license and what follows from it; the same of what the student started from."""
    teacher, start = report.get("teacher") or {}, report.get("init_from") or {}
    rows = {
        "teacher": teacher.get("name") or UNKNOWN,
        "sha256 of its weights": teacher.get("sha256") or UNKNOWN,
        "license": teacher.get("license") or "not stated in its files: see the teacher's own card",
    }
    said = [duties("teacher", teacher.get("license")), _terms(teacher.get("license"))]
    if start:
        rows |= {"the student started from": start["name"], "sha256 of those weights": start["sha256"]}
    if start.get("license"):
        rows["license of those weights"] = start["license"]
        said += [f"That of the weights that the student started from ({start['license']}) applies as well."]
        said += [_terms(start["license"])]
    return table("Teacher", rows) + "\n\n" + " ".join(filter(None, said))


def _terms(license: str | None) -> str:
    return f"Its terms: {terms}." if (terms := warning(license)) else ""


def duties(what: str, license: str | None) -> str:
    """What the license of the origin means for weights that were made from it."""
    rule = f"license ({license}) applies" if license else "license, which its own card states, applies"
    return (
        f"The {what}'s {rule} here too: these weights were made from the {what}'s, so what may not be done with "
        "those may not be done with these."
    )


def run_sections(title: str, report: Mapping[str, Any]) -> list[str]:
    """Data, command and figures of a run, as its report.json states them."""
    if not report:
        return [f"## {title}\n\nData, command and figures are {UNKNOWN}."]
    rows: dict[str, Any] = {f"data: {name}": value for name, value in (report.get("data") or {}).items()}
    rows |= {name: report[name] for name in ("steps", "seed", "precision", "device", "date") if name in report}
    if "command" in report:
        rows["command"] = f"`{shlex.join(report['command'])}`"
    if "versions" in report:
        rows["versions"] = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    sections = [table(title, rows)]
    if figures := report.get("figures"):
        shown = {n: f"{v:.6g}" if isinstance(v, float) else v for n, v in figures.items()}
        sections.append(table(f"{title}: figures", shown))
    return sections


def parity_section(parity: Mapping[str, Any]) -> str:
    """How exactly the export computes what was trained."""
    rows = {
        "largest absolute difference": f"{parity['max_abs_difference']:.3g} (refused above {parity['tolerance']:g})",
        "compared": "trained module against this folder, reloaded in a process without LiteFrame; float32 on the CPU",
        "reloaded with": ", ".join(f"{name} {number}" for name, number in parity["reloaded_with"].items()),
        "exported by": f"liteframe {version('liteframe')}",
    }
    if parity.get("rounding_to_saved_dtype"):
        rows["rounding"] = (
            f"merging the update and storing the sum as {parity['saved_dtype']} moved the logits by up to "
            f"{parity['rounding_to_saved_dtype']:.3g}; the difference above is counted after it"
        )
    return table("Parity", rows) + "\n\nCase by case in `parity.json`."
