"""A latency record as files: JSON, a markdown table, and a plot of total time over frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from liteframe.evaluate.bench_report import heading, markdown, write_files
from liteframe.evaluate.latency_bench import COLUMNS, cells


def write_latency(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write latency.json, latency.md and latency.png into the folder."""
    return write_files(record, latency_table(record), plot, folder, "latency")


def latency_table(record: dict[str, Any]) -> str:
    """Markdown of a record of `liteframe bench latency`."""
    setup = record["setup"]
    weights = (
        "random weights of the true shapes" if setup["random_weights"] else f"{setup['vlm']} and {setup['encoder']}"
    )
    text = heading(record, "Latency of Video LLMs") + (
        f"{weights}; {setup['dtype']}, {setup['warmup']} warm-ups, median of {setup['runs']}, the systems in turns.\n"
        "The paper's figures are of InternVL3-8B on an A100-80GB; its ratios are to its own teacher at 32 frames.\n\n"
    )
    text += markdown(COLUMNS, [cells(row) for row in record["rows"]])
    if record["first_token"]:
        rows = [
            [str(row["frames"]), f"{row['one_after_the_other_ms']:.1f}", f"{row['overlapped_ms']:.1f}"]
            for row in record["first_token"]
        ]
        text += f"\nTime to the first token of LiteFrame, from a video file ({setup['threads']} threads):\n\n"
        text += markdown(("frames", "read, encode, prefill: ms", "overlapped clip by clip: ms"), rows)
    return text


def plot(record: dict[str, Any], path: Path) -> None:
    """Total milliseconds over frames, a line for each system; the paper's as crosses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    rows = [row for row in record["rows"] if row["batch"] == record["rows"][0]["batch"]]
    for number, name in enumerate(dict.fromkeys(row["system"] for row in rows)):
        own = [row for row in rows if row["system"] == name and "total_ms" in row]
        axes.loglog([r["frames"] for r in own], [r["total_ms"] for r in own], "os^"[number] + "-", label=name)
        paper = [row for row in rows if row["system"] == name and "paper_ms" in row]
        if paper and record["setup"]["random_weights"]:
            points = [r["frames"] for r in paper], [r["paper_ms"][2] for r in paper]
            axes.loglog(*points, "x", color=axes.lines[-1].get_color(), label=f"{name}, paper (A100)")
    axes.set_xlabel("frames")
    axes.set_ylabel("vision + projector + prefill, ms")
    axes.set_title(f"{record['machine']['device']}, {record['machine']['date']}", fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=120)
