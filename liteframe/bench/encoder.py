"""Latency, memory and FLOP rate of encoders side by side: teacher, student without compression, student."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from liteframe_kernels import force_backend
from liteframe_kernels.backend import triton
from torch import Tensor, nn

from liteframe.bench.comparison import NO_GPU
from liteframe.bench.timing import Contender, as_milliseconds, copy_bandwidth, machine, matmul_rate, time_side_by_side
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M, Cost, VitShape, cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.load import load_teacher

# Times a block moves its tokens when all that lies between the matmuls is fused (the MLP's hidden layer counts 4).
FUSED_PASSES = 28


@dataclass(frozen=True)
class Setup:
    """What to measure: sizes, dtype, protocol. `tiny` replaces the models by small ones that a CPU runs."""

    frames: tuple[int, ...]
    size: int
    dtype: torch.dtype
    warmup: int
    runs: int
    compiled: bool
    tiny: bool


def measure_encoders(setup: Setup, device: torch.device, progress: Callable[[str], None]) -> dict[str, Any]:
    """A record: one row for each encoder and number of frames, and the student's time by part.

    The student takes clips of clip_frames as a batch, the teacher frames as a batch; random weights. The matmul rate is
    the better of two measurements, before and after the encoders.

    Raises:
        ValueError: an encoder ran faster than the matmul rate, so one of both was measured wrongly.
    """
    peak = matmul_rate(device, setup.dtype, warmup=setup.warmup, runs=setup.runs)
    bandwidth = copy_bandwidth(device, 2**29 if device.type == "cuda" else 2**22, warmup=setup.warmup, runs=setup.runs)
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for name, shape, build in _encoders(setup):
        model = build().eval().requires_grad_(False).to(device, setup.dtype)
        for frames in setup.frames:
            video = _video(shape, frames, setup, device)
            price = cost(shape, frames, setup.size)
            for variant, backend, compiled in _variants(name, setup):
                progress(f"{name}, {variant}, {frames} frames")
                status = NO_GPU if backend == "triton" and (device.type != "cuda" or triton is None) else "ok"
                row: dict[str, Any] = {"encoder": name, "variant": variant, "frames": frames, "status": status}
                if status == "ok":
                    row |= _measure(model, video, backend, compiled, setup)
                    row |= _rates(row["median_ms"], price, fused_bytes(shape, frames, setup))
                rows.append(row)
            if name == "student":
                progress(f"student by part, {frames} frames")
                parts += [{"frames": frames, **part} for part in _time_by_part(model, video, setup)]
        del model
    peak = max(peak, matmul_rate(device, setup.dtype, warmup=setup.warmup, runs=setup.runs))
    teacher = {(r["frames"], r["variant"]): r["median_ms"] for r in rows if r["encoder"] == "teacher"}
    for row in rows:
        if "median_ms" in row:
            like = "compiled" if "compiled" in row["variant"] else "eager"
            row["times_faster_than_teacher"] = teacher[row["frames"], like] / row["median_ms"]
            row["matmul_share"] = _share_of_matmul(row, peak)
    return {
        "machine": machine(device),
        "setup": _described(setup),
        "matmul_flop_per_s": peak,
        "copy_bytes_per_s": bandwidth,
        "rows": rows,
        "parts": parts,
    }


def _encoders(setup: Setup) -> Iterator[tuple[str, LiteFrameConfig | VitShape, Callable[[], nn.Module]]]:
    small: dict[str, Any] = {}
    teacher_shape, arguments = INTERNVIT_300M, {}
    if setup.tiny:
        small = {"dim": 64, "depth": 4, "heads": 2, "teacher_dim": 64, "downsample": {1: (2, 2, 2), 2: (2, 1, 1)}}
        teacher_shape = dataclasses.replace(INTERNVIT_300M, dim=64, depth=2, mlp_dim=256)
        arguments = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    student = LiteFrameConfig(**small)
    plain = LiteFrameConfig(**{**small, "downsample": {}, "temporal_mixer": "none"})
    yield "teacher", teacher_shape, lambda: _timm_teacher(arguments)
    yield "student without compression", plain, lambda: LiteFrameEncoder(plain)
    yield "student", student, lambda: LiteFrameEncoder(student)


def _timm_teacher(arguments: dict[str, Any]) -> nn.Module:
    return load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, **arguments)


def _variants(name: str, setup: Setup) -> Iterator[tuple[str, str, bool]]:
    """Variant, backend of the kernels, whether torch.compile is used."""
    yield "eager", "reference", False
    if setup.compiled:
        yield "compiled", "reference", True
    if name == "student":
        yield "kernels", "triton", False
        if setup.compiled:
            yield "kernels, compiled", "triton", True


def _video(shape: LiteFrameConfig | VitShape, frames: int, setup: Setup, device: torch.device) -> Tensor:
    """`[clips,frames of a clip,3,size,size]`."""
    clip = min(frames, shape.clip_frames) if isinstance(shape, LiteFrameConfig) else frames
    if frames % clip:
        raise ValueError(f"--frames {frames} is not a multiple of the student's clip of {clip} frames")
    return torch.randn(frames // clip, clip, 3, setup.size, setup.size, device=device, dtype=setup.dtype)


@torch.inference_mode()
def _measure(model: nn.Module, video: Tensor, backend: str, compiled: bool, setup: Setup) -> dict[str, Any]:
    device = video.device
    torch.compiler.reset()  # else the limit of recompilations makes the last sizes run eager
    call = torch.compile(model, dynamic=False) if compiled else model
    with force_backend(backend):
        contender = {"": Contender(lambda run: video, call)}
        time_side_by_side(contender, device, warmup=1, runs=1)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        timing = time_side_by_side(contender, device, warmup=setup.warmup, runs=setup.runs)[""]
    return {
        **as_milliseconds(timing),
        "ms_per_frame": timing.median_ms / (video.shape[0] * video.shape[1]),
        "peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }


def _share_of_matmul(row: dict[str, Any], peak: float) -> float:
    share = row["flop_per_s"] / peak
    if share > 1:
        raise ValueError(
            f"{row['encoder']}, {row['variant']}, {row['frames']} frames: {row['flop_per_s'] / 1e12:.3f} TFLOP/s is "
            f"{share:.0%} of the matmul rate measured in this run ({peak / 1e12:.3f} TFLOP/s), which cannot be; "
            "nothing is written. Something else used the machine: measure again when it is idle, with more --runs"
        )
    return share


def _rates(milliseconds: float, price: Cost, nbytes: int) -> dict[str, float]:
    """FLOP rates, with the attention products and, as the paper counts, without."""
    flops, seconds = price.flops + price.attention_flops, milliseconds / 1000
    return {
        "flop_per_s": flops / seconds,
        "flop_per_s_paper": price.flops / seconds,
        "intensity": flops / nbytes,
    }


def fused_bytes(shape: LiteFrameConfig | VitShape, frames: int, setup: Setup) -> int:
    """Bytes that all blocks together move at least: FUSED_PASSES over the tokens of each block."""
    return FUSED_PASSES * pass_bytes(shape, frames, setup.size, setup.dtype.itemsize)


def pass_bytes(shape: LiteFrameConfig | VitShape, frames: int, size: int, itemsize: int) -> int:
    """Bytes of the tokens of all blocks, once each."""
    rows = columns = size // shape.patch_size
    tokens, left = 0, frames
    for block in range(1, shape.depth + 1):
        tokens += left * (rows * columns + 1)
        if isinstance(shape, LiteFrameConfig) and block in shape.downsample:
            t, h, w = shape.downsample[block]
            left, rows, columns = left // t, rows // h, columns // w
    return tokens * shape.dim * itemsize


def _part(name: str) -> str | None:
    """The part of the student that a module of this name is counted to."""
    last = name.rsplit(".", 1)[-1]
    if last in ("patch_embed", "attn", "mlp", "temporal", "head"):
        return last
    return "norms" if last in ("norm1", "norm2") else "downsample" if name.startswith("downsample.") else None


def _given(calls: list[tuple[nn.Module, tuple]], run: int) -> list[tuple[nn.Module, tuple]]:
    return calls


def _remember(calls: list[tuple[nn.Module, tuple]], module: nn.Module, args: tuple) -> None:
    calls.append((module, args))


@torch.inference_mode()
def _time_by_part(model: nn.Module, video: Tensor, setup: Setup) -> list[dict[str, Any]]:
    """Time of the eager student by part, by running each part again on the input that it gets.

    "other" is what the whole takes beyond its parts: residuals, LayerScale, copies. On a GPU parts and whole are timed
    apart, so launch gaps that overlap in the whole can make it small.
    """
    inputs: dict[str, list[tuple[nn.Module, tuple]]] = {}
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if part := _part(name):
                calls = inputs.setdefault(part, [])
                hook = module.register_forward_pre_hook(partial(_remember, calls))
                hooks.callback(hook.remove)
        model(video)

    def run_part(calls: list[tuple[nn.Module, tuple]]) -> None:
        for module, args in calls:
            module(*args)

    contenders = {part: Contender(partial(_given, calls), run_part) for part, calls in inputs.items()}
    contenders["whole"] = Contender(lambda run: video, model)
    timings = time_side_by_side(contenders, video.device, warmup=3, runs=min(20, setup.runs))
    whole = timings.pop("whole").median_ms
    parts = {part: timing.median_ms for part, timing in timings.items()}
    parts["other"] = max(0.0, whole - sum(parts.values()))
    return [{"part": part, "median_ms": ms, "share": ms / whole} for part, ms in parts.items()]


def _described(setup: Setup) -> dict[str, Any]:
    return {**dataclasses.asdict(setup), "frames": list(setup.frames), "dtype": str(setup.dtype).removeprefix("torch.")}
