"""Time from a video's pixels to the first token of an answer, in parts, the systems in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

PARTS = ("vision", "projector", "prefill", "total")


@dataclass(frozen=True)
class Latency:
    """Medians over the runs, in milliseconds.

    Attributes:
        vision_ms: the vision encoder, with pixel shuffle.
        projector_ms: the projector, 0 where the model has none.
        prefill_ms: the language model with its head, up to the first token's logits.
        total_ms: the whole pass.
        peak_mib: largest memory of the device during the passes, None on a CPU.
        total_p90_ms: 90th percentile of the whole pass.
    """

    vision_ms: float
    projector_ms: float
    prefill_ms: float
    total_ms: float
    peak_mib: float | None
    total_p90_ms: float

    @property
    def encoder_ms(self) -> float:
        """All that comes before the language model."""
        return self.total_ms - self.prefill_ms


class Watch:
    """Times of the parts of a Video LLM while they run, and marks between them; milliseconds.

    Attributes:
        spent: by part ("tower", "projector"), over all its calls.
        marks: when, by name: "prefill" is where the language model begins, "projector" and "projector done" the
            beginning and end of the projector's last call.
    """

    def __init__(self, model: nn.Module):
        self.device = next(model.parameters()).device
        self.spent = {"tower": 0.0, "projector": 0.0}
        self.marks: dict[str, float] = {}
        inner: Any = model.model
        self._hooks = [inner.language_model.register_forward_pre_hook(partial(self._begin, "prefill"))]
        for part, name in (("tower", "vision_tower"), ("projector", "multi_modal_projector")):
            if (module := getattr(inner, name, None)) is not None:
                self._hooks.append(module.register_forward_pre_hook(partial(self._begin, part)))
                self._hooks.append(module.register_forward_hook(partial(self._end, part)))

    def mark(self, name: str) -> float:
        """Wait for the device and note the time, which is returned."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks[name] = 1000 * time.perf_counter()
        return self.marks[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, part: str, *_: Any) -> None:
        self.mark(part)

    def _end(self, part: str, *_: Any) -> None:
        self.spent[part] += self.mark(f"{part} done") - self.marks[part]


@dataclass(frozen=True)
class Samples:
    """What passes of one system took: milliseconds of each part by pass, and the device's largest memory in MiB."""

    parts: list[dict[str, float]]
    peak_mib: float | None

    def median(self, part: str) -> float:
        """Of one part, over the passes."""
        return statistics.median(sample[part] for sample in self.parts)

    @property
    def total_p90_ms(self) -> float:
        """90th percentile of the whole pass."""
        totals = sorted(sample["total"] for sample in self.parts)
        return totals[min(len(totals) - 1, int(0.9 * len(totals)))]


Pass = Callable[[], dict[str, float]]


@torch.inference_mode()
def time_in_turns(passes: Mapping[str, Pass], device: torch.device, *, warmup: int, runs: int) -> dict[str, Samples]:
    """Run the passes in turns (A, B, A, B, ...), so that a change of clocks meets all.

    Args:
        passes: name -> what runs once and returns the milliseconds of its parts, "total" among them.
        device: on which they run.
        warmup: passes of each that are not counted (the paper: 40).
        runs: passes of each that are counted (the paper: 100).
    """
    parts: dict[str, list[dict[str, float]]] = {name: [] for name in passes}
    peaks: dict[str, float | None] = dict.fromkeys(passes)
    for run in range(warmup + runs):
        for name, once in passes.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            sample = once()
            if run >= warmup:
                parts[name].append(sample)
                if device.type == "cuda":
                    peaks[name] = max(peaks[name] or 0.0, torch.cuda.max_memory_allocated(device) / 2**20)
    return {name: Samples(found, peaks[name]) for name, found in parts.items()}


def measure_in_turns(
    systems: Mapping[str, tuple[nn.Module, Mapping[str, Any]]], *, warmup: int, runs: int
) -> dict[str, Latency]:
    """Median latency of whole prefills by `model(**inputs)`, in turns.

    Args:
        systems: name -> a Hugging Face Video LLM in eval mode, whose language model is `model.model.language_model`,
            and the inputs of one pass, on the model's device; all on one.
        warmup: passes of each that are not counted.
        runs: passes of each that are counted.
    """
    if not systems:
        return {}
    passes = {name: partial(_forward, model, inputs) for name, (model, inputs) in systems.items()}
    device = next(next(iter(systems.values()))[0].parameters()).device
    found = time_in_turns(passes, device, warmup=warmup, runs=runs)
    return {
        name: Latency(
            **{f"{part}_ms": samples.median(part) for part in PARTS},
            peak_mib=samples.peak_mib,
            total_p90_ms=samples.total_p90_ms,
        )
        for name, samples in found.items()
    }


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of each of PARTS in a pass of a model."""
    with Watch(model) as watch:
        start = watch.mark("start")
        model(**inputs, use_cache=True, logits_to_keep=1)
        end = watch.mark("end")
    prefill = watch.marks["prefill"]
    before = watch.marks.get("projector", prefill)
    return {
        "vision": before - start,
        "projector": watch.marks.get("projector done", before) - before,
        "prefill": end - prefill,
        "total": end - start,
    }


def measure(model: nn.Module, inputs: Mapping[str, Any], *, warmup: int = 3, runs: int = 10) -> Latency:
    """`measure_in_turns` of one system."""
    return measure_in_turns({"": (model, inputs)}, warmup=warmup, runs=runs)[""]
