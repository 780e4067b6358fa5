"""Time of each system from pixels to the first token, in stages, at batch 1, the systems in turns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from liteframe.answer.labels import VideoLines
from liteframe.answer.prefill import whole_prompt
from liteframe.bench.stages import Samples, Watch, time_in_turns
from liteframe.evaluate.asking import System

STAGES = ("tower", "signals", "reduction", "projector", "prefill")


def warmups(runs: int) -> int:
    """Passes that are not counted before so many that are; the paper has 40 before 100."""
    return max(3, 2 * runs // 5)


class Timed(NamedTuple):
    """A system, frames uint8 [T,H,W,3] of a video for it, and what it is asked."""

    system: System
    frames: np.ndarray
    question: str


def time_points(points: Mapping[str, Timed], runs: int) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Median milliseconds of each stage and of all, 90th percentile, peak memory; and why some have none.

    All points take turns, so that what else the machine does meets each alike. Tokenizing is left out, and what a plain
    model's projector has around it (pixel shuffle, pooling) counts as it.

    Args:
        points: by name, all on one device.
        runs: passes of each that are counted.
    """
    passes, failures = dict[str, partial[dict[str, float]]](), dict[str, str]()
    for name, (system, frames, question) in points.items():
        try:
            once = partial(one_pass, system, system.encoder.pixels(system.encoder.resized(frames)), question)
            once()  # alone: one that does not fit must not take the others with it
            passes[name] = once
        except (ValueError, torch.OutOfMemoryError) as error:
            failures[name] = reason(error)
    if not passes:
        return {}, failures
    device = next(iter(points.values())).system.model.device
    found = time_in_turns(passes, device, warmup=warmups(runs), runs=runs)
    return {name: _summary(samples) for name, samples in found.items()}, failures


@torch.inference_mode()
def one_pass(system: System, pixels: Tensor, question: str) -> dict[str, float]:
    """Milliseconds of each of STAGES and "total", from pixels [T,3,h,w] to the logits of the first token."""
    spent = dict.fromkeys(STAGES, 0.0)
    shown = None
    with Watch(system.model) as watch:
        last, of_tower = watch.mark("start"), 0.0

        def ended(stage: str) -> None:
            nonlocal last, of_tower
            now, tower = watch.mark(stage), watch.spent["tower"]
            spent["tower"] += tower - of_tower
            spent[stage] += now - last - (tower - of_tower)
            last, of_tower = now, tower

        if not system.blind:
            shown = system.encoder.whole(pixels, ended)
        tokenizer = system.processor.tokenizer
        lines = VideoLines(system.encoder, tokenizer, "frames")
        embeddings = whole_prompt(system.model, tokenizer, lines, shown, question).embeddings
        last = watch.mark("prompt")
        hidden = system.model.model.language_model(inputs_embeds=embeddings, use_cache=True).last_hidden_state
        system.model.lm_head(hidden[:, -1])
        ended("prefill")
    return {**spent, "total": sum(spent.values())}


def reason(error: Exception) -> str:
    """A failure in one line, for a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return " ".join(str(error).split())


def _summary(samples: Samples) -> dict[str, Any]:
    medians = {part: samples.median(part) for part in (*STAGES, "total")}
    return {**medians, "total_p90": samples.total_p90_ms, "peak_mib": samples.peak_mib}
