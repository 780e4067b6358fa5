"""A benchmark record as files: JSON, a markdown table made from it, and a plot (a roofline, or latency over frames)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from liteframe.bench.comparison import NO_GPU
from liteframe.bench.latency import COLUMNS, cells
from liteframe.files import replacing, write_atomically

KERNEL_COLUMNS = (
    "kernel",
    "use",
    "direction",
    "implementation",
    "ms (p10 - p90)",
    "GB/s",
    "of copy",
    "passes",
    "error",
)
ENCODER_COLUMNS = (
    "encoder", "variant", "frames", "ms (p10 - p90)", "ms/frame", "TFLOP/s", "of matmul", "peak MiB", "vs teacher",
    "error",
)  # fmt: skip


def write_report(record: dict[str, Any], folder: Path, stem: str) -> list[Path]:
    """Write the record of `liteframe bench kernels` or `encoder` as `stem`.json, `stem`.md and `stem`.png."""
    table = kernel_table(record) if stem == "kernels" else encoder_table(record)
    return write_files(record, table, roofline, folder, stem)


def write_files(
    record: dict[str, Any], table: str, plot: Callable[[dict[str, Any], Path], None], folder: Path, stem: str
) -> list[Path]:
    """Write a record, its table and its plot into the folder, each of them complete or not at all."""
    numbers, text, figure = (folder / f"{stem}.{suffix}" for suffix in ("json", "md", "png"))
    write_atomically(numbers, (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(text, table.encode())
    with replacing(figure) as temporary:
        plot(record, temporary)
    return [numbers, text, figure]


def kernel_table(record: dict[str, Any]) -> str:
    """Markdown of a record of `liteframe bench kernels`."""
    rows = []
    for row in record["rows"]:
        head = [row["kernel"], row["label"], row["direction"], row["implementation"]]
        if "median_ms" not in row:
            rows.append([*head, row["status"], "", "", "", _number(row.get("error"), "{:.1e}")])
            continue
        passes = f"{row['passes']:.2f} (floor {row['floor_passes']:.2f})"
        values = [_ms(row), f"{row['gb_per_s']:.1f}", f"{row['copy_share']:.0%}", passes, f"{row['error']:.1e}"]
        rows.append([*head, *values])
    copy = f"Copy bandwidth in this run: {record['copy_bytes_per_s'] / 1e9:.1f} GB/s (read plus written).\n\n"
    notes = (
        "GB/s counts the bytes that any implementation has to move; passes are the time in units of one pass over the\n"
        "tensor at copy speed; error is the root mean square against float64, relative.\n"
    )
    return heading(record, "Kernels") + copy + markdown(KERNEL_COLUMNS, rows) + "\n" + notes


def encoder_table(record: dict[str, Any]) -> str:
    """Markdown of a record of `liteframe bench encoder`."""
    rows = []
    for row in record["rows"]:
        head = [row["encoder"], row["variant"], str(row["frames"])]
        if "median_ms" not in row:
            rows.append([*head, row["status"], "", "", "", "", "", _number(row.get("error"), "{:.1e}")])
            continue
        rows.append(
            [
                *head,
                _ms(row),
                f"{row['ms_per_frame']:.3f}",
                f"{row['flop_per_s'] / 1e12:.3f}",
                _number(row.get("matmul_share"), "{:.0%}"),
                _number(row["peak_mib"], "{:.0f}"),
                _number(row.get("times_faster_than_teacher"), "{:.2f}x"),
                _number(row.get("error"), "{:.1e}"),
            ]
        )
    parts = [
        [str(part["frames"]), part["part"], f"{part['median_ms']:.3f}", f"{part['share']:.0%}"]
        for part in record["parts"]
    ]
    matmul = f"Matmul rate in this run: {record['matmul_flop_per_s'] / 1e12:.3f} TFLOP/s.\n\n"
    notes = (
        "TFLOP/s counts the attention products; `vs teacher` compares eager with eager, compiled with compiled;\n"
        "error is the root mean square against float32, relative, where it was taken.\n\n"
    )
    return (
        heading(record, "Encoders")
        + matmul
        + markdown(ENCODER_COLUMNS, rows)
        + "\n"
        + notes
        + "The eager student by part:\n\n"
        + markdown(("frames", "part", "ms", "share"), parts)
    )


def roofline(record: dict[str, Any], path: Path) -> None:
    """Plot FLOP/s over FLOP per byte under the roofs of the same run: copy bandwidth and matmul rate."""
    from matplotlib.figure import Figure

    measured = [row for row in record["rows"] if "median_ms" in row]
    bandwidth, peak = record["copy_bytes_per_s"], record["matmul_flop_per_s"]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    ridge = peak / bandwidth
    ends = sorted([ridge / 1000, ridge, ridge * 1000])
    axes.loglog(ends, [min(bandwidth * x, peak) for x in ends], color="black", label="copy bandwidth, matmul rate")
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in measured:
        name = row["implementation"] if "implementation" in row else f"{row['encoder']}, {row['variant']}"
        groups.setdefault(name, []).append(row)
    for number, (name, rows) in enumerate(groups.items()):
        points = [row["intensity"] for row in rows], [row["flop_per_s"] for row in rows]
        axes.scatter(*points, s=24, marker="os^vDP*Xdp"[number % 10], label=name)
    axes.set_xlabel("FLOP per byte that has to move")
    axes.set_ylabel("FLOP/s")
    axes.set_title(f"{record['machine']['device']}, {record['machine']['date']}", fontsize=10)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, format="png")


def heading(record: dict[str, Any], title: str) -> str:
    """Title, machine and versions; says so where no GPU was measured."""
    machine = record["machine"]
    versions = f"torch {machine['torch']}, triton {machine['kernels']['triton']}, python {machine['python']}"
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    note = "" if machine["measured_on_gpu"] else f"Times are of a CPU and show that the script runs: **{NO_GPU}**.\n\n"
    return f"# {title}\n\n{machine['device']}{driver}, {versions}, {machine['date']}\n\n{note}"


def markdown(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    """A markdown table: the columns' titles, and rows with a text for each of them."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _ms(row: dict[str, Any]) -> str:
    return f"{row['median_ms']:.3f} ({row['p10_ms']:.3f} - {row['p90_ms']:.3f})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def write_latency(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write latency.json, latency.md and latency.png into the folder."""
    return write_files(record, latency_table(record), latency_plot, folder, "latency")


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


def latency_plot(record: dict[str, Any], path: Path) -> None:
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
    figure.savefig(path, dpi=120, format="png")
