"""A run as one HTML page that needs nothing else.

Of training: curves, panel, data faults, cost, parity of its exports; of `liteframe compare`: pictures and tables.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

# The order in which a reader asks; curves that a run does not log are left out.
CURVES = (
    *("train/loss", "train/cosine", "val/token_cosine", "val/explained_variance_mean", "val/projected_cosine"),
    *("train/preference_loss", "train/answer_loss", "train/preference_accuracy", "train/margin"),
    *("train/answer_accuracy", "train/lr", "train/gradient_norm", "train/skipped_steps", "train/clipped_fraction"),
    *("data/failed_rate", "speed/data_wait_share", "speed/clips_per_second", "speed/samples_per_second"),
)
BAD_VIDEOS_SHOWN = 50
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .15rem 1rem .15rem 0; text-align: left;
vertical-align: top; overflow-wrap: anywhere } th { font-weight: 600 } td.n { text-align: right;
font-variant-numeric: tabular-nums } .good { color: #18794e } .bad { color: #c62a2f } .muted { color: #777 }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
svg { width: 100%; height: auto } img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ddd }
pre { background: #f6f6f6; padding: 1rem; overflow: auto; font-size: .85rem }
"""
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ style|safe }}</style>
<h1>{{ title }}</h1>
<p class="{{ 'muted' if finished else 'bad' }}">{{ state }}</p>
{% macro table(rows) %}<table>{% for name, value in rows %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</table>{% endmacro %}
{% if figures %}<h2>Figures</h2>{{ table(figures) }}{% endif %}
<h2>Curves</h2>
{% if curves %}<div class="curves">{% for svg in curves %}<div>{{ svg|safe }}</div>{% endfor %}</div>
{% else %}<p class="muted">no TensorBoard events in this folder</p>{% endif %}
{% if panel %}<h2>Panel</h2><p class="muted">One clip, a column a slot. Rows from the top: frames; saliency
(absent when training from a cache); target tokens; student tokens, in the target's colors.</p>
<img alt="frames, target and student tokens" src="data:image/png;base64,{{ panel }}">{% endif %}
<h2>Data</h2>{{ table(data) }}
{% if faults %}<table><tr><th>video</th><th>kind</th><th>reason</th><th>what to do</th></tr>
{% for row in faults %}<tr><td>{{ row.path }}</td><td>{{ row.kind }}</td><td>{{ row.reason }}</td>
<td>{{ row.remedy }}</td></tr>{% endfor %}</table>
{% if more_faults %}<p>and {{ more_faults }} more in bad_videos.jsonl</p>{% endif %}
{% else %}<p class="good">No video failed.</p>{% endif %}
<h2>Cost</h2>{{ table(cost) }}
{% for name, parity in parities %}<h2>Parity of {{ name }}</h2>
<p class="{{ 'good' if parity.good else 'bad' }}">{{ parity.verdict }}</p>{{ table(parity.rows) }}{% endfor %}
{% if config %}<h2>Configuration</h2><pre>{{ config }}</pre>{% endif %}
</html>
"""

COMPARISON = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ style|safe }} img { image-rendering: auto; border: 0 } pre { white-space: pre }</style>
<h1>{{ title }}</h1>
{% for name, picture in pictures %}<img alt="{{ name }}" src="data:image/png;base64,{{ picture }}">
{% endfor %}<pre>{{ text }}</pre>
</html>
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe report`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of distill, align, prefer or compare")
    parser.add_argument("exports", type=Path, nargs="*", metavar="EXPORT", help="folders that were exported from it")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="page to write (default: RUN/report.html)")


def run(args: argparse.Namespace) -> int:
    """Writes the page; ValueError where a folder is no run or no export."""
    from jinja2 import Environment

    from liteframe.files import write_atomically

    output = args.output or args.run / "report.html"
    compared = (args.run / "compare.json").is_file()
    if compared and args.exports:
        raise ValueError(f"{args.run} is a comparison, from which nothing is exported: leave out {args.exports[0]}")
    values = comparison(args.run) if compared else facts(args.run, args.exports)
    page = Environment(autoescape=True, trim_blocks=True).from_string(COMPARISON if compared else PAGE).render(values)
    write_atomically(output, page.encode())
    print(f"wrote {output}")
    return 0


def comparison(run: Path) -> dict[str, Any]:
    """What the page of a comparison shows: its pictures, and results.md as it is."""
    pictures = [(file.stem.replace("_", " "), _picture(file)) for file in sorted(run.glob("*.png"))]
    text = (run / "results.md").read_text(encoding="utf-8")
    return {"style": STYLE, "title": f"COMPARISON {run.resolve().name}", "pictures": pictures, "text": text}


def _picture(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def facts(run: Path, exports: list[Path]) -> dict[str, Any]:
    """What the page shows, as its template names it.

    Raises:
        ValueError: `run` has no config.yaml, an export no parity.json, or a file of theirs is damaged.
    """
    from liteframe.texts import read_json, read_jsonl

    config = run / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{run} is no run of distill or align: it has no config.yaml")
    report = read_json(run / "report.json") if (run / "report.json").is_file() else {}
    faults = [row for _, row in read_jsonl(run / "bad_videos.jsonl")] if (run / "bad_videos.jsonl").is_file() else []
    panel = run / "panel.png"
    data = {key: value for key, value in report.get("data", {}).items() if value not in (None, {}, [])}
    kinds = Counter(str(row["kind"]) for row in faults)
    if kinds:
        data["bad videos"] = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return {
        "style": STYLE,
        "title": f"{report.get('kind', 'run').upper()} {run.resolve().name}",
        "finished": bool(report),
        "state": f"{report['steps']} steps, finished {report['date']}" if report else "not finished: no report.json",
        "figures": _rows(report.get("figures", {})),
        "curves": _curves(run),
        "panel": _picture(panel) if panel.is_file() else None,
        "data": _rows(data),
        "faults": faults[:BAD_VIDEOS_SHOWN],
        "more_faults": max(0, len(faults) - BAD_VIDEOS_SHOWN),
        "cost": _cost(report),
        "parities": [(folder.resolve().name, _parity(folder)) for folder in exports],
        "config": config.read_text(encoding="utf-8"),
    }


def _curves(run: Path) -> list[str]:
    """An SVG for each logged figure, against optimizer steps; a dot where there is one value."""
    import matplotlib
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), {"scalars": 0})
    events.Reload()
    drawn = []
    for tag in CURVES:
        if tag not in events.Tags()["scalars"]:
            continue
        points = [(event.step, event.value) for event in events.Scalars(tag) if math.isfinite(event.value)]
        figure = Figure(figsize=(4, 2.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(*zip(*points, strict=True) if points else ((), ()), marker="." if len(points) < 30 else "", lw=1.2)
        axes.set_title(tag, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": tag}):  # or the ids of two curves would be the same
            figure.savefig(text, format="svg", metadata={"Date": None})
        drawn.append("".join(text.getvalue().partition("<svg")[1:]))
    return drawn


def _cost(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Time and machine of the run; of a student also what encoding takes."""
    rows = _rows({key: report[key] for key in ("time", "precision", "trained_parameters") if key in report})
    if "student" in report:
        from liteframe.models.student.config import LiteFrameConfig
        from liteframe.models.student.cost import cost

        values = {key: value for key, value in report["student"].items() if key != "parameters"}
        config = LiteFrameConfig.from_dict(values)
        per_clip = cost(config, frames=config.clip_frames)
        rows += [
            ("student's parameters", f"{per_clip.params:,}"),
            (f"FLOPs of a clip of {config.clip_frames} frames", f"{per_clip.flops + per_clip.attention_flops:,}"),
            ("tokens a frame, after the VLM's pixel shuffle", f"{per_clip.tokens_per_frame:g}"),
        ]
    machine = ("device", "threads", "platform", "peak_memory_gib", "python", "versions")
    rows += _rows({key: report[key] for key in machine if key in report})
    return [*rows, ("command", " ".join(report["command"]))] if report else rows


def _parity(folder: Path) -> dict[str, Any]:
    from liteframe.texts import read_json

    if not (folder / "parity.json").is_file():
        raise ValueError(f"{folder} is no folder that `liteframe export` wrote: it has no parity.json")
    values = read_json(folder / "parity.json")
    name = next(key for key in ("max_abs_difference", "max_relative_difference") if key in values)
    good = values[name] <= values["tolerance"]
    verdict = f"largest difference {values[name]:.3g}, {'within' if good else 'ABOVE'} {values['tolerance']:g}"
    return {"good": good, "verdict": verdict, "rows": _rows({k: v for k, v in values.items() if k != "cases"})}


def _rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values as text; what is nested under dotted names."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{name}.")
        else:
            text = (
                f"{value:.5g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
            )
            rows.append((f"{prefix}{name}", text))
    return rows
