"""Time from a video file to the first token of an answer, and files to measure it on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from liteframe.answer.ask import ask


def first_token(model: Any, processor: Any, path: Path, frames: int, runs: int) -> dict[str, float]:
    """Median milliseconds from a video file to the first token: one step after the other, and overlapped."""
    ways = {"one_after_the_other_ms": False, "overlapped_ms": True}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):  # the first is a warm-up
        for name, overlap in ways.items():
            began = time.perf_counter()
            list(ask(model, processor, path, "What happens?", frames=frames, max_new_tokens=1, overlap=overlap))
            if run:
                samples[name].append(1000 * (time.perf_counter() - began))
    return {name: float(np.median(values)) for name, values in samples.items()}


def write_sample(path: Path, frames: int, size: tuple[int, int]) -> None:
    """An H.264 video of drifting colours, `size` = (height, width) in pixels."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for t in range(frames):
            image = np.stack([(x + 3 * t) % 256, (y + 5 * t) % 256, (x + y + 7 * t) % 256], axis=-1).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
