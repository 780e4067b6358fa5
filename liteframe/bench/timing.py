"""Timing on a GPU (CUDA events) or a CPU (clock), the machine it was done on, and its copy and matmul rates."""

import dataclasses
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from liteframe_kernels.backend import backend_report


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, 10th and 90th percentile over the runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True)
class Contender:
    """Something to time: `prepare(i)` is not timed, `call(prepared)` is; i counts the runs, to rotate buffers."""

    prepare: Callable[[int], Any]
    call: Callable[[Any], Any]


def time_side_by_side(
    contenders: Mapping[str, Contender], device: torch.device, *, warmup: int = 40, runs: int = 100
) -> dict[str, Timing]:
    """Time the contenders in turns (A, B, A, B, ...), so that a change of clocks meets all of them alike."""
    samples: dict[str, list[Any]] = {name: [] for name in contenders}
    for run in range(warmup + runs):
        for name, contender in contenders.items():
            prepared = contender.prepare(run)
            marks = _mark(device)
            contender.call(prepared)
            samples[name].append((marks, _mark(device)))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {name: _summary([_elapsed_ms(*pair) for pair in pairs[warmup:]]) for name, pairs in samples.items()}


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))  # not the current device's, where nothing runs
    return event


def _elapsed_ms(start: Any, end: Any) -> float:
    return start.elapsed_time(end) if isinstance(start, torch.cuda.Event) else 1000 * (end - start)


def _summary(milliseconds: list[float]) -> Timing:
    ordered = sorted(milliseconds)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


# Fewest calls before a rate is measured, and fewest that are: the first ones choose an algorithm and touch the memory.
WARM = 10
LONGEST_S = 5.0


def copy_bandwidth(device: torch.device, nbytes: int, *, warmup: int, runs: int) -> float:
    """Bytes per second, read plus written, of copying `nbytes` from one tensor to another, warm."""
    source = torch.ones(max(1, nbytes // 4), device=device)
    targets = [torch.empty_like(source) for _ in range(2)]
    copy = Contender(lambda run: targets[run % 2], lambda target: target.copy_(source))
    timing = time_side_by_side({"copy": copy}, device, warmup=max(warmup, WARM), runs=max(runs, WARM))["copy"]
    return 2 * source.nbytes / (timing.median_ms / 1000)


def matmul_rate(device: torch.device, dtype: torch.dtype, *, warmup: int, runs: int) -> float:
    """FLOP per second of a square matrix product, warm; of several sizes the fastest, with this process's threads.

    A size is left out where it would take more than LONGEST_S at the rate of the smaller ones.
    """
    protocol, best = {"warmup": max(warmup, WARM), "runs": max(runs, WARM)}, 0.0

    def rate(size: int) -> float:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        product = Contender(lambda run: None, lambda _: F.linear(a, b))
        timing = time_side_by_side({"matmul": product}, device, **protocol)["matmul"]
        return 2 * size**3 / (timing.median_ms / 1000)

    for size in (4096, 8192) if device.type == "cuda" else (256, 512, 1024, 2048):
        if best and sum(protocol.values()) * 2 * size**3 / best > LONGEST_S:
            break
        best = max(best, rate(size))
    return best


def rotation(nbytes: int, device: torch.device) -> int:
    """How many sets of buffers of `nbytes` it takes that none is still in the L2 cache when its turn comes."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return 2 + 2 * cache // max(1, nbytes)


def machine(device: torch.device) -> dict[str, Any]:
    """Where and with what a measurement was taken."""
    on_gpu = device.type == "cuda"
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU ({platform.machine()})",
        "measured_on_gpu": on_gpu,
        "driver": _driver(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "kernels": backend_report(),
    }


def _driver(device: torch.device) -> str:
    """Driver, clock and power limit of the card, which nvidia-smi numbers in its own way and finds by its place."""
    card: Any = torch.cuda.get_device_properties(device)
    place = f"{card.pci_domain_id:08x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
    query = ["nvidia-smi", f"--id={place}", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown ({error})"


def as_milliseconds(timing: Timing) -> dict[str, float]:
    """A timing as fields of a row of a record."""
    return dataclasses.asdict(timing)
