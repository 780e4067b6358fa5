"""The model card (README.md) of an export."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from liteframe.models.student_config import LiteFrameConfig

UNKNOWN = "not recorded beside the weights"
TRANSFORMERS = ">=5.17,<5.24"  # as in setup.cfg; tests/export compares the two

ENCODER_USAGE = """\
import numpy as np
import torch
from transformers import AutoModel, AutoVideoProcessor

folder = "{folder}"  # this folder, or its id on a hub
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)

frames = np.zeros((20, 360, 640, 3), np.uint8)  # RGB frames [T,H,W,3] of your video, at 1 to 4 frames a second
pixels = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"].to(model.dtype)  # [1,T,3,{size},{size}]
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


@dataclass(frozen=True)
class VlmSummary:
    """What the card of a Video LLM tells; reports are those of the runs, {} where there is none."""

    name: str
    vlm: str
    licence: str | None
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
    rows, columns = config.image_size // config.patch_size // h, config.image_size // config.patch_size // w
    usage = ENCODER_USAGE.format(
        folder=name, size=config.image_size, t=t, rows=rows, columns=columns, dim=config.teacher_dim
    )
    about = (
        f"A video encoder of {parameters:,} parameters, distilled from {teacher.get('name') or 'an image teacher'} by "
        f"LiteFrame (arXiv 2605.17260). It turns a video `[B,T,3,H,W]` into features "
        f"`[B,T/{t},H/{config.patch_size * h},W/{config.patch_size * w},{config.teacher_dim}]` in the teacher's own "
        "feature space, so that the teacher's projector takes them as they are."
    )
    return join(
        front_matter("feature-extraction", teacher.get("licence")),
        f"# {name}",
        about,
        use(usage),
        table("Encoder", encoder_rows(config)),
        teacher_section(teacher),
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
        "licence": summary.licence or "not stated in its files: see its own card",
    }
    return join(
        front_matter("video-text-to-text", summary.licence),
        f"# {summary.name}",
        about,
        use(VLM_USAGE.format(folder=summary.name)),
        table("Made from", base) + f"\n\n{duties('Video LLM', summary.licence)}",
        table("Encoder", encoder_rows(config)),
        teacher_section(summary.encoder_report.get("teacher") or {}),
        *run_sections("Distillation of the encoder", summary.encoder_report),
        *run_sections("Alignment with the language model", summary.adapter_report),
        parity_section(parity),
    )


def join(*sections: str) -> str:
    """Sections with a blank line between them."""
    return "\n\n".join(sections) + "\n"


def front_matter(task: str, licence: str | None) -> str:
    """YAML that hubs read."""
    values = {"library_name": "transformers", "pipeline_tag": task, "license": licence or "other"}
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
    return {
        "frames": f"{config.image_size} x {config.image_size} pixels (`{config.resize}`), "
        f"mean {list(config.image_mean)}, std {list(config.image_std)}",
        "clip": f"{config.clip_frames} frames are encoded together",
        "blocks": f"{config.depth} of width {config.dim}, {config.heads} heads, MLP {config.mlp_dim}",
        "compression": f"{t} frames x {h} x {w} patches become one token of {config.teacher_dim} channels",
    }


def teacher_section(teacher: Mapping[str, Any]) -> str:
    """Teacher, its identity, its licence and what follows from it."""
    rows = {
        "teacher": teacher.get("name") or UNKNOWN,
        "sha256 of its weights": teacher.get("sha256") or UNKNOWN,
        "licence": teacher.get("licence") or "not stated in its files: see the teacher's own card",
    }
    return table("Teacher", rows) + f"\n\n{duties('teacher', teacher.get('licence'))}"


def duties(what: str, licence: str | None) -> str:
    """What the licence of the origin means for weights that were made from it."""
    rule = f"licence ({licence}) applies" if licence else "licence, which its own card states, applies"
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
            f"storing the weights as {parity['saved_dtype']} moved the logits by up to "
            f"{parity['rounding_to_saved_dtype']:.3g}; the difference above is counted after it"
        )
    return table("Parity", rows) + "\n\nCase by case in `parity.json`."
