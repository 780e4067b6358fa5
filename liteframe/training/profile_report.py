"""What a rehearsal found, for people: a table of shares, the bottleneck in one sentence, profile.json."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from liteframe.training.profile_steps import Measurement

LABELS = {
    "data": "data (decode, or wait for workers)",
    "transfer": "transfer, resize",
    "teacher": "teacher",
    "pooling": "pooling of targets",
    "student": "student forward",
    "forward": "loss, rest of forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "optimizer, clipping",
    "logging": "logging, callbacks",
    "other": "other (loop, hooks)",
}
# Parts that have one cause and one remedy.
GROUPS = {"pooling": "teacher", "forward": "student", "backward": "student"}


@dataclass(frozen=True)
class Circumstances:
    """What decides which remedy is at hand.

    Attributes:
        workers: decoding processes.
        cached: targets come from a cache.
        cached_frames: frames do, too.
        compiled: blocks are compiled.
        teaches: the run is one that has a teacher (CTD).
    """

    workers: int
    cached: bool = False
    cached_frames: bool = False
    compiled: bool = False
    teaches: bool = False


def shares(measurement: Measurement) -> dict[str, float]:
    """Part of the measured wall time, by part, in the order of a step; they sum to about 1."""
    parts = measurement.parts
    return {part: parts[part] / measurement.seconds for part in LABELS if part in parts}


def bottleneck(measurement: Measurement, given: Circumstances) -> tuple[str, float, str]:
    """Name, share and remedy of what takes longest."""
    groups: dict[str, float] = {}
    for part, share in shares(measurement).items():
        group = GROUPS.get(part, part)
        groups[group] = groups.get(group, 0.0) + share
    name = max(groups, key=lambda group: groups[group])
    return name, groups[name], _remedy(name, groups[name], given)


def sentence(measurement: Measurement, given: Circumstances) -> str:
    """The bottleneck and what helps, in one sentence."""
    name, share, remedy = bottleneck(measurement, given)
    verb = "waiting" if name == "data" else "of a step"
    return f"{name}: {share:.0%} {verb}; {remedy}"


def _remedy(name: str, share: float, given: Circumstances) -> str:
    if name == "data":
        return _data_remedy(share, given)
    if name == "teacher":
        more = "" if given.compiled else "; --model.compile true makes it faster"
        return f"a target cache (liteframe cache build) leaves it out of every step{more}"
    return {
        "student": "this is the training itself"
        + ("" if given.compiled or not given.teaches else "; --model.compile true fuses its elementwise operations"),
        "transfer": "ship smaller frames: scan reports their size, and --data.size sets what the teacher gets",
        "communication": "raise data.batch_size or lower devices, so that each step has more to compute",
        "optimizer": "raise data.batch_size: the optimizer's time does not depend on it",
        "logging": "raise trainer.log_every_n_steps and panel.every_n_steps",
        "other": "raise data.micro_batch_size: the loop around a step costs the same for any batch",
    }[name]


def _data_remedy(share: float, given: Circumstances) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    build = "" if given.cached_frames or not given.teaches else "build a cache with JPEG frames (liteframe cache build)"
    if given.workers == 0:
        advice = f"decoding takes turns with computing: set data.workers (this machine has {cores} cores)"
    else:
        # A loader that is waited for delivers a batch a step; it would have to in the rest of the step.
        wanted = math.ceil(round(given.workers / max(1 - share, 1 / 64), 2))
        advice = f"raise data.workers from {given.workers} to about {wanted}"
        if wanted > cores:
            advice = f"about {wanted} workers would keep up, this machine has {cores} cores"
    return f"{advice}, or {build}" if build else advice


def table(measurement: Measurement) -> str:
    """Milliseconds and share of each part, and the sum beside the measured step."""
    step = measurement.seconds / measurement.steps
    rows = [
        f"{LABELS[part]:36s}{1000 * share * step:10.1f} ms{share:8.1%}" for part, share in shares(measurement).items()
    ]
    total = sum(shares(measurement).values())
    clock = "GPU stream" if measurement.clock == "device" else "wall clock"
    return "\n".join(
        [
            f"{measurement.steps} steps, {clock}",
            *rows,
            f"{'sum':36s}{1000 * total * step:10.1f} ms{total:8.1%}",
            f"{'step, measured as a whole':36s}{1000 * step:10.1f} ms{1:8.1%}",
        ]
    )


def as_record(measurement: Measurement, given: Circumstances) -> dict[str, Any]:
    """profile.json, less what the command adds about the run."""
    name, share, remedy = bottleneck(measurement, given)
    return {
        "kind": "profile",
        "steps": measurement.steps,
        "seconds_per_step": measurement.seconds / measurement.steps,
        "clock": measurement.clock,
        "parts": {
            part: {"seconds_per_step": share * measurement.seconds / measurement.steps, "share": share}
            for part, share in shares(measurement).items()
        },
        "bottleneck": {"part": name, "share": share, "remedy": remedy, "sentence": sentence(measurement, given)},
        "peak_bytes": measurement.peak_bytes,
        "trace": str(measurement.trace),
    }
