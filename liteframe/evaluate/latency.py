"""Time of one forward pass of a Video LLM, split into what the eyes take and what the language model takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Medians over the runs, in milliseconds: vision encoder with projector, and prefill of the language model."""

    encoder_ms: float
    prefill_ms: float

    @property
    def total_ms(self) -> float:
        """Encoder and prefill together."""
        return self.encoder_ms + self.prefill_ms


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.inference_mode()
def measure(model: nn.Module, inputs: Mapping[str, Any], *, warmup: int = 3, runs: int = 10) -> Latency:
    """Median latency of a whole prefill, by timing the language model inside the full forward pass.

    Args:
        model: a Hugging Face Video LLM (InternVL, or one with a LiteFrame encoder) in eval mode; its language model
            is `model.model.language_model`.
        inputs: what the processor returned for one prompt, on the model's device.
        warmup: passes that are not counted (the paper's protocol: 40).
        runs: passes counted (the paper's protocol: 100).
    """
    device = next(model.parameters()).device
    marks: dict[str, float] = {}
    language: nn.Module = model.model.language_model  # type: ignore[assignment,union-attr]
    hook = language.register_forward_pre_hook(lambda *_: marks.__setitem__("start", _clock(device)))
    encoder, prefill = [], []
    try:
        for run in range(warmup + runs):
            began = _clock(device)
            model(**inputs, use_cache=True, logits_to_keep=1)
            ended = _clock(device)
            if run >= warmup:
                prefill.append(1000 * (ended - marks["start"]))
                encoder.append(1000 * (marks["start"] - began))
    finally:
        hook.remove()
    return Latency(statistics.median(encoder), statistics.median(prefill))
