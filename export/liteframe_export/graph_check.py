"""Compare a traced encoder with the encoder itself, number by number and in time."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe_export.traceable import check_shapes

# Largest difference, relative to the largest feature.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2}
RUNS = 5


def compare_graph(
    encoder: LiteFrameEncoder, run: Callable[[Tensor], Tensor], dtype: torch.dtype, runtime: dict[str, str]
) -> dict[str, Any]:
    """The parity report of a graph: float32 features of the encoder against those of the graph, on the CPU.

    Args:
        encoder: in float32.
        run: the graph, [B,T,3,H,W] in `dtype` -> [B,T/t,h,w,C].
        dtype: of the graph.
        runtime: name and version of what runs it.

    Raises:
        ValueError: features differ by more than TOLERANCES allow, or their shapes do.
    """
    generator = torch.Generator().manual_seed(0)
    tolerance = TOLERANCES[dtype]
    cases = []
    for shape in check_shapes(encoder.config):
        video = torch.randn(shape, generator=generator).to(dtype)
        with torch.inference_mode():
            expected, torch_ms = _timed(encoder, video.float())
        found, graph_ms = _timed(run, video)
        if found.shape != expected.shape:
            raise ValueError(
                f"features of the graph at {list(shape)}: shape {list(found.shape)}, expected {list(expected.shape)}"
            )
        scale = expected.abs().max().item()
        difference = (found.float() - expected).abs().max().item() / scale
        if not difference <= tolerance:
            raise ValueError(
                f"features of the graph at {list(shape)} differ by {difference:.3g} of the largest feature, more than "
                f"{tolerance:g}; nothing is written"
            )
        cases.append(
            {
                "video": list(shape),
                "features": list(expected.shape),
                "largest_feature": scale,
                "relative_difference": difference,
                "torch_ms": round(torch_ms, 3),
                "graph_ms": round(graph_ms, 3),
            }
        )
    return {
        "max_relative_difference": max(case["relative_difference"] for case in cases),
        "tolerance": tolerance,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "runtime": {**runtime, "torch": torch.__version__},
        "cases": cases,
    }


def _timed(call: Callable[[Tensor], Tensor], video: Tensor) -> tuple[Tensor, float]:
    """The result, and the median of RUNS calls after it in milliseconds."""
    result = call(video)
    samples = []
    for _ in range(RUNS):
        began = time.perf_counter()
        call(video)
        samples.append(1000 * (time.perf_counter() - began))
    return result, statistics.median(samples)
