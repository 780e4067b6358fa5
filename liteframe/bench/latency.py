"""`liteframe bench latency`: teacher VLM, teacher + WAP and LiteFrame side by side, beside the paper's main table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from liteframe.bench.stages import Latency, measure_in_turns
from liteframe.bench.systems import LITEFRAME, POOLED, TEACHER, make_inputs, tokens_per_frame

# Paper (arXiv 2605.17260), main table: A100-80GB, batch 1, median of 100 after 40 warm-ups.
# (system, frames): vision ms, language model ms, total ms.
PAPER = {
    (TEACHER, 8): (40.0, 167.3, 208.4),
    (TEACHER, 16): (74.0, 329.3, 403.6),
    (TEACHER, 32): (144.5, 669.8, 814.5),
    (LITEFRAME, 32): (30.1, 61.5, 91.9),
    (LITEFRAME, 64): (54.8, 94.9, 150.1),
    (LITEFRAME, 128): (105.3, 166.6, 272.6),
    (LITEFRAME, 256): (204.0, 327.4, 532.3),
}
BASELINE = (TEACHER, 32)
COLUMNS = (
    "system", "frames", "batch", "tokens/frame", "vision parameters", "vision ms", "projector ms", "prefill ms",
    "total ms", "peak MiB", "of teacher, 32 frames", "paper: vision / LLM / total ms", "paper: of teacher, 32 frames",
)  # fmt: skip


def measure_latencies(
    systems: dict[str, tuple[Any, Any]],
    frames: Sequence[int],
    batches: Sequence[int],
    *,
    warmup: int,
    runs: int,
    progress: Callable[[str], None],
) -> Iterator[list[dict[str, Any]]]:
    """For each batch and number of frames, one row for each system; what does not fit has a status that says so."""
    held = {name: held_bytes(name, model) for name, (model, _) in systems.items()}
    for batch in batches:
        for count in frames:
            progress(f"{count} frames, batch {batch}")
            timed, status = _measure(systems, held, count, batch, warmup, runs)
            yield [
                _row(name, model, config, count, batch, timed.get(name), status[name])
                for name, (model, config) in systems.items()
            ]


def _measure(
    systems: dict[str, tuple[Any, Any]],
    held: dict[str, dict[int, int]],
    frames: int,
    batch: int,
    warmup: int,
    runs: int,
) -> tuple[dict[str, Latency], dict[str, str]]:
    """Latencies of the systems that fit, and what became of each."""
    fitting, status = {}, {}
    for name, (model, config) in systems.items():
        try:
            fitting[name], status[name] = (model, _inputs_that_fit(model, config, frames, batch)), "ok"
        except torch.OutOfMemoryError:
            status[name] = "out of memory"
            torch.cuda.empty_cache()
        except ValueError as error:
            status[name] = str(error)
    try:
        return alone_peaks(measure_in_turns(fitting, warmup=warmup, runs=runs), fitting, held), status
    except torch.OutOfMemoryError:
        status |= dict.fromkeys(fitting, "ok, but not in turns")
    names = list(fitting)
    timed: dict[str, Latency] = {}
    fitting.clear()  # each fits alone, but not beside the inputs of the others
    for name in names:
        torch.cuda.empty_cache()
        one = {name: (systems[name][0], make_inputs(*systems[name], frames, batch))}
        try:
            timed |= alone_peaks(measure_in_turns(one, warmup=warmup, runs=runs), one, held)
        except torch.OutOfMemoryError:
            status[name] = "out of memory"
    return timed, status


def _inputs_that_fit(model: Any, config: Any, frames: int, batch: int) -> dict[str, Tensor]:
    """Inputs that the model has passed once, alone: a system that does not fit must not take the others with it."""
    inputs = make_inputs(model, config, frames, batch)
    measure_in_turns({"": (model, inputs)}, warmup=0, runs=1)
    return inputs


def held_bytes(name: str, model: Any) -> dict[int, int]:
    """Address -> bytes of each weight that a system needs."""
    weights = [*model.parameters(), *model.buffers(), *_tower(name, model).parameters()]
    return {weight.data_ptr(): weight.nbytes for weight in weights}


def alone_peaks(
    timed: dict[str, Latency], systems: dict[str, tuple[Any, Any]], held: dict[str, dict[int, int]]
) -> dict[str, Latency]:
    """Peak memory as if a system were alone: without weights and inputs that only the others need."""
    together = {address: size for one in held.values() for address, size in one.items()}
    shown = {name: sum(tensor.nbytes for tensor in inputs.values()) for name, (_, inputs) in systems.items()}
    found = {}
    for name, latency in timed.items():
        others = sum(size for address, size in together.items() if address not in held[name])
        others += sum(size for other, size in shown.items() if other != name)
        peak = None if latency.peak_mib is None else latency.peak_mib - others / 2**20
        found[name] = dataclasses.replace(latency, peak_mib=peak)
    return found


def _tower(name: str, model: Any) -> Any:
    """What sees the frames; a Teacher hides its weights from parameters()."""
    tower = model.model.vision_tower
    return tower.encoder.pooled.teacher.tower if name == POOLED else tower


def _row(
    name: str, model: Any, config: Any, frames: int, batch: int, latency: Latency | None, status: str
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "system": name,
        "frames": frames,
        "batch": batch,
        "tokens_per_frame": tokens_per_frame(model, config),
        "vision_parameters": sum(p.numel() for p in _tower(name, model).parameters()),
        "status": status,
    }
    return row if latency is None else row | dataclasses.asdict(latency)


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Put each total in relation to the teacher's at 32 frames and the same batch, and the paper's beside it."""
    base = {r["batch"]: r["total_ms"] for r in rows if (r["system"], r["frames"]) == BASELINE and "total_ms" in r}
    for row in rows:
        if "total_ms" in row and row["batch"] in base:
            row["of_teacher_32"] = row["total_ms"] / base[row["batch"]]
        paper = PAPER.get((row["system"], row["frames"])) if row["batch"] == 1 else None
        if paper:
            row["paper_ms"] = paper
            row["paper_of_teacher_32"] = paper[2] / PAPER[BASELINE][2]


def cells(row: dict[str, Any]) -> list[str]:
    """One system's row of the markdown table, a text a column."""
    head = [
        row["system"],
        str(row["frames"]),
        str(row["batch"]),
        f"{row['tokens_per_frame']:g}",
        f"{row['vision_parameters'] / 1e6:.2f}M",
    ]
    paper = [
        " / ".join(f"{ms:g}" for ms in row["paper_ms"]) if "paper_ms" in row else "",
        f"{row['paper_of_teacher_32']:.2f}" if "paper_ms" in row else "",
    ]
    if "total_ms" not in row:
        return [*head, row["status"], *[""] * 5, *paper]
    peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
    ratio = f"{row['of_teacher_32']:.2f}" if "of_teacher_32" in row else ""
    times = [f"{row[name]:.1f}" for name in ("vision_ms", "projector_ms", "prefill_ms", "total_ms")]
    return [*head, *times, peak, ratio, *paper]
