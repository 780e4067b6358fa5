"""Time of one forward pass of a Video LLM, split into vision encoder, projector and prefill of the language model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


class _Watch:
    """Marks the borders between the parts of a model's forward pass."""

    def __init__(self, model: nn.Module):
        self.device = next(model.parameters()).device
        self.marks: dict[str, float] = {}
        inner: Any = model.model
        self.hooks = [inner.language_model.register_forward_pre_hook(lambda *_: self.mark("prefill"))]
        projector = getattr(inner, "multi_modal_projector", None)
        if projector is not None:
            self.hooks.append(projector.register_forward_pre_hook(lambda *_: self.mark("projector")))
            self.hooks.append(projector.register_forward_hook(lambda *_: self.mark("projected")))

    def mark(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks[name] = 1000 * time.perf_counter()

    def times(self) -> dict[str, float]:
        """Milliseconds of each of PARTS in the last pass."""
        m = self.marks
        before = m.get("projector", m["prefill"])
        return {
            "vision": before - m["start"],
            "projector": m.get("projected", before) - before,
            "prefill": m["end"] - m["prefill"],
            "total": m["end"] - m["start"],
        }

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


@torch.inference_mode()
def measure_in_turns(
    systems: Mapping[str, tuple[nn.Module, Mapping[str, Any]]], *, warmup: int, runs: int
) -> dict[str, Latency]:
    """Median latency of whole prefills, the systems in turns (A, B, A, B, ...), so that a change of clocks meets all.

    Args:
        systems: name -> a Hugging Face Video LLM in eval mode, whose language model is `model.model.language_model`,
            and the inputs of one pass, on the model's device.
        warmup: passes of each that are not counted (the paper: 40).
        runs: passes of each that are counted (the paper: 100).
    """
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    peaks: dict[str, float | None] = dict.fromkeys(systems)
    for run in range(warmup + runs):
        for name, (model, inputs) in systems.items():
            watch = _Watch(model)
            on_gpu = watch.device.type == "cuda"
            try:
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(watch.device)
                watch.mark("start")
                model(**inputs, use_cache=True, logits_to_keep=1)
                watch.mark("end")
            finally:
                watch.remove()
            if run >= warmup:
                samples[name].append(watch.times())
                if on_gpu:
                    peaks[name] = max(peaks[name] or 0.0, torch.cuda.max_memory_allocated(watch.device) / 2**20)
    return {name: _summary(found, peaks[name]) for name, found in samples.items()}


def measure(model: nn.Module, inputs: Mapping[str, Any], *, warmup: int = 3, runs: int = 10) -> Latency:
    """`measure_in_turns` of one system."""
    return measure_in_turns({"": (model, inputs)}, warmup=warmup, runs=runs)[""]


def _summary(samples: list[dict[str, float]], peak: float | None) -> Latency:
    median = {f"{part}_ms": statistics.median(sample[part] for sample in samples) for part in PARTS}
    totals = sorted(sample["total"] for sample in samples)
    return Latency(**median, peak_mib=peak, total_p90_ms=totals[min(len(totals) - 1, int(0.9 * len(totals)))])
