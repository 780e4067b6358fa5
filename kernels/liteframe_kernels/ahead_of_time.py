"""Compile what the launchers launch for Ampere and Hopper without a GPU, and record what it takes.

    python -m liteframe_kernels.ahead_of_time -o benchmarks/ahead_of_time.json

The launchers are called with tensors that have no memory, and Triton with a driver that only names an architecture: so
types, alignment, sizes of one and missing pointers are those of real calls. Training runs the kernels in float32, since
autocast leaves the residual stream in float32 (what is added to it is in bfloat16: "mixed"); a model converted to
bfloat16 runs them in bfloat16. A row is a compiled kernel: registers, bytes of stack (0 where nothing spills), shared
memory, and how many global accesses are 128 bits wide.
Runs in a process without TRITON_INTERPRET: kernels decorated for the interpreter cannot be compiled.
"""

import argparse
import contextlib
import datetime
import functools
import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from liteframe_kernels.backend import INTERPRETING
from liteframe_kernels.launch import TunedKernel
from liteframe_kernels.residual_norm import triton as residual
from liteframe_kernels.strided_conv import triton as strided
from liteframe_kernels.strided_conv.reference import strided_conv_reference
from liteframe_kernels.temporal_conv import triton as temporal
from liteframe_kernels.weighted_average_pool import triton as pool

SHARED_MEMORY = {80: 166912, 90: 232448}  # bytes that a program may take, by architecture
MAX_REGISTERS = 128
DTYPES = (torch.float32, torch.bfloat16)
DISASSEMBLERS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """A call of a launcher: what is called and how, and what it should come to."""

    name: str
    kernel: TunedKernel
    call: Callable[[], object]
    dtype: torch.dtype
    # Blocks of tokens that are loaded, and stored, 128 bits at a time, by the kernel's constants.
    wide: Callable[[dict[str, int]], tuple[int, int]]
    # Not a call of the paper's model: compiled for the newest architecture only.
    edge: bool = False


@dataclass(frozen=True)
class Row:
    """What one compiled kernel takes."""

    name: str
    arch: int
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    loads_128: int
    stores_128: int
    loads_128_expected: int
    stores_128_expected: int

    def problems(self) -> list[str]:
        """What keeps the kernel from running at the speed of memory."""
        found = []
        if self.stack_bytes:
            found.append(f"spills: {self.stack_bytes} bytes of stack")
        if self.registers > MAX_REGISTERS:
            found.append(f"{self.registers} registers, more than {MAX_REGISTERS}")
        if self.loads_128 < self.loads_128_expected or self.stores_128 < self.stores_128_expected:
            found.append(
                f"{self.loads_128} loads and {self.stores_128} stores of 128 bits, expected at least "
                f"{self.loads_128_expected} and {self.stores_128_expected}"
            )
        return found


def launches() -> Iterator[Launch]:
    """The launches of the student and of WAP at the paper's sizes, and those at the edges: sizes of 1, views, None.

    Some share a compiled kernel: one for sizes of 1 would be a surprise in the middle of a run.
    """
    for dtype in DTYPES:
        yield from _temporal_conv(dtype)
        yield from _residual_norm(dtype, dtype)
        yield from _strided_conv(dtype)
        yield from _weighted_average_pool(dtype)
    yield from _residual_norm(torch.float32, torch.bfloat16)


def _temporal_conv(dtype: torch.dtype) -> Iterator[Launch]:
    block = _tokens(dtype, 2, 16, 1025, 768)  # of the student's first blocks, a batch of two clips
    views = {
        "": block,
        ", one frame": _tokens(dtype, 1, 1, 1025, 768),
        ", one token": _tokens(dtype, 2, 16, 1, 768),
        ", last blocks": _tokens(dtype, 2, 4, 257, 768),
        ", far apart": torch.empty_strided(block.shape, (2**36, 2**32, 768, 1), dtype=dtype, device="meta"),
        ", unaligned": _tokens(dtype, 2, 16, 1025, 769)[..., 1:],
    }

    def forward(name: str, x: Tensor, bias: Tensor | None) -> Launch:
        fits = int(x is not views[", unaligned"])
        return Launch(
            f"temporal_conv forward{name}",
            temporal.FORWARD,
            lambda: temporal.forward(x, x.new_empty(768, 3), bias, True),
            dtype,
            lambda meta: (fits * (meta["BT"] + 2), fits * meta["BT"]),
            edge=bool(name),
        )

    def backward(name: str, x: Tensor, need_dx: bool, need_dw: bool, taps: int = 3) -> Launch:
        fits = int(x is not views[", unaligned"])
        return Launch(
            f"temporal_conv backward{name}",
            temporal.BACKWARD if taps == 3 else temporal.BACKWARD_WIDE,
            lambda: temporal.backward(x.new_empty(x.shape), x, x.new_empty(768, taps), True, need_dx, need_dw),
            dtype,
            lambda meta: (meta["BT"] + taps - 1 + fits * need_dw * meta["BT"], need_dx * meta["BT"]),
            edge=x is not block,
        )

    for name, x in views.items():
        yield forward(name, x, block.new_empty(768))
    yield forward(", without bias", block, None)
    for name, x in views.items():
        yield backward(name, x, True, True)
    yield backward(", of x only", block, True, False)
    yield backward(", of parameters only", block, False, True)
    yield backward(", 5 taps", block, True, True, taps=5)


def _residual_norm(dtype: torch.dtype, branch_dtype: torch.dtype) -> Iterator[Launch]:
    mixed = "" if dtype == branch_dtype else ", mixed"
    block = _tokens(dtype, 2, 16, 1025, 768)
    views = {
        "": block,
        ", one frame": _tokens(dtype, 1, 1, 1025, 768),
        ", four frames": _tokens(dtype, 2, 4, 257, 768),
        ", one token": _tokens(dtype, 2, 16, 1, 768),
        ", unaligned": _tokens(dtype, 2, 16, 1025, 769)[..., 1:],
        ", 192 channels": _tokens(dtype, 2, 16, 1025, 192),
        ", 1280 channels": _tokens(dtype, 2, 16, 1025, 1280),
    }

    def launch(name: str, x: Tensor, taps: int, scaled: bool = True) -> Iterator[Launch]:
        channels, wide = x.shape[3], taps > 3 or x.shape[3] > residual.TILE
        vector = x.new_empty(channels, dtype=torch.float32 if mixed else dtype)
        branch = torch.empty_like(x, dtype=branch_dtype, memory_format=torch.contiguous_format)
        scale, bias = (vector if scaled else None), (vector if taps else None)
        weight = vector.new_empty(channels, taps, dtype=torch.float32 if taps == 1 else None) if taps else None
        each, halo = {1: 1, 4: 4}.get(x.shape[1], 8), max(0, taps - 1)
        fits = int(", unaligned" not in name)
        yield Launch(
            f"residual_norm forward{name}{mixed}",
            residual.FORWARD_WIDE if wide or branch_dtype == torch.float32 else residual.FORWARD,
            lambda: residual.forward(x, branch, scale, weight, bias, vector, vector, 1e-6),
            branch_dtype,
            lambda meta: (each + halo + fits * (each + halo), 2 * each),
            edge=bool(name) and name != ", no conv",
        )
        statistics = torch.empty(x.shape[:3], device="meta")
        like = torch.empty_like(x, memory_format=torch.contiguous_format)
        yield Launch(
            f"residual_norm backward{name}{mixed}",
            residual.BACKWARD_WIDE if wide else residual.BACKWARD,
            lambda: residual.backward(like, branch, x, branch, scale, weight, bias, vector, statistics, statistics),
            branch_dtype,
            lambda meta: (3 + fits, 2),
            edge=bool(name) and name != ", no conv",
        )

    for name, x in views.items():
        yield from launch(name, x, 3)
    yield from launch(", no conv", block, 0)
    yield from launch(", no conv, no scale", block, 0, scaled=False)
    yield from launch(", no scale", block, 3, scaled=False)
    yield from launch(", 5 taps", block, 5)
    yield from launch(", a still", _tokens(dtype, 2, 1, 1025, 768), 1)  # its tap is a sum in float32


def _strided_conv(dtype: torch.dtype) -> Iterator[Launch]:
    def stage(name: str, kernel: tuple[int, int, int], tokens: Tensor, edge: bool = False) -> Iterator[Launch]:
        side = math.isqrt(tokens.shape[2])
        x, cls = tokens[:, :, 1:].unflatten(2, (side, side)), tokens[:, :, 0]
        weight, bias = tokens.new_empty(768, *kernel), tokens.new_empty(768)
        grad, grad_cls = strided_conv_reference(x, weight, bias, cls=cls)
        space = kernel[1] * kernel[2]

        def forward(what: str, bias: Tensor | None, cls: Tensor | None) -> Launch:
            return Launch(
                f"strided_conv forward {name}{what}",
                strided.FORWARD,
                lambda: strided.forward(x, weight, bias, cls),
                dtype,
                lambda meta: (kernel[0] * space, 1),
                edge=edge or bool(what),
            )

        def backward(what: str, need_dx: bool, need_dw: bool) -> Launch:
            return Launch(
                f"strided_conv backward {name}{what}",
                strided.BACKWARD if space <= 4 else strided.BACKWARD_WIDE,
                lambda: strided.backward(grad, grad_cls, x, weight, cls, need_dx, need_dw),
                dtype,
                lambda meta: (1 + need_dw * space, need_dx * space),
                edge=edge,
            )

        yield forward("", bias, cls)
        yield backward("", True, True)
        if name == "2x2x2":
            yield forward(", without cls and bias", None, None)
            yield backward(", of x only", True, False)
            yield backward(", of parameters only", False, True)

    yield from stage("2x2x2", (2, 2, 2), _tokens(dtype, 2, 16, 1025, 768))
    yield from stage("2x1x1", (2, 1, 1), _tokens(dtype, 2, 8, 257, 768))
    yield from stage("2x2x2, one window", (2, 2, 2), _tokens(dtype, 1, 2, 5, 768), edge=True)
    yield from stage("1x3x3", (1, 3, 3), _tokens(dtype, 2, 16, 145, 768), edge=True)


def _weighted_average_pool(dtype: torch.dtype) -> Iterator[Launch]:
    tokens = _tokens(dtype, 2, 16, 1025, 1024)
    patches, query = tokens[:, :, 1:].unflatten(2, (32, 32)), tokens[:, :, 0]
    logits, mask = tokens.new_empty(2, 16, 32, 32), tokens.new_empty(2, 16, dtype=torch.bool)
    wide = _tokens(dtype, 1, 16, 257, 3200)  # of a teacher of 6 billion parameters
    cases: dict[str, tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]] = {
        "query": (patches, query, None, None),
        "logits and mask": (patches, None, logits, mask),
        "3200 channels": (wide[:, :, 1:].unflatten(2, (16, 16)), wide[:, :, 0], None, None),
        "query and mask": (patches, query, None, mask),
        "logits in float32": (patches, None, logits.float(), None),
        "plain mean": (patches, None, None, None),
        "one block": (patches[:1, :4, :2, :2], query[:1, :4], None, None),
    }
    for case, given in cases.items():
        yield Launch(
            f"weighted_average_pool forward, {case}",
            pool.FORWARD,
            functools.partial(pool.forward, *given, [4, 2, 2], precise=case == "query and mask"),
            dtype,
            lambda meta: (1, 0),
            edge=case not in ("query", "logits and mask", "3200 channels"),
        )


def _tokens(dtype: torch.dtype, *shape: int) -> Tensor:
    """[B,T,N,C] without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def compile_launches(chosen: Iterable[Launch], arch: int) -> Iterator[Row]:
    """Call each launcher, and read registers, spills and access widths from what Triton compiles for it."""
    compiled: list[dict[str, Any]] = []
    for launch in chosen:
        launch.kernel.chosen.clear()
        with pretend(arch, lambda **result: compiled.append(result)):
            launch.call()
        for result in compiled:
            yield _row(launch, arch, **result)
        compiled.clear()


@contextlib.contextmanager
def pretend(arch: int, listener: Callable[..., None]) -> Iterator[None]:
    """Within the block Triton has a GPU of this architecture, on which a launch compiles and runs nothing."""

    def run_once(call: Callable[[], object], **_: Any) -> list[float]:
        call()  # so every configuration is compiled
        return [0.0, 0.0, 0.0]

    named = SimpleNamespace(
        get_current_device=lambda: arch,  # Triton keeps the compiled kernels of two devices apart
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        get_benchmarker=lambda: run_once,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": SHARED_MEMORY[arch]},
            load_binary=lambda *_: (None, None, 0, 0, 1024),  # module, function, registers, spills, most threads
        ),
    )
    config, knob = triton.runtime.driver, triton.knobs.compilation
    before = config._active, knob.listener
    config._active, knob.listener = named, listener
    try:
        yield
    finally:
        config._active, knob.listener = before


def _row(launch: Launch, arch: int, src: Any, metadata: dict, metadata_group: dict[str, str], **_: Any) -> Row:
    files = {Path(path).suffix: Path(path) for path in metadata_group.values()}
    meta = {src.fn.arg_names[place[0]]: value for place, value in src.constants.items()}
    resources, ptx = _resources(files[".cubin"]), files[".ptx"].read_text()
    loads, stores = launch.wide(meta)
    tile = meta.get("TILE", meta["BC"] * meta.get("MB", 1))
    a_block = tile * launch.dtype.itemsize // (32 * metadata["num_warps"] * 16)  # 128-bit accesses of a thread
    tiles = [f"{name}={meta[name]}" for name in ("TILE", "BT") if name in meta and len(launch.kernel.configs) > 1]
    return Row(
        name=" ".join([launch.name, str(launch.dtype).removeprefix("torch."), *tiles]),
        arch=arch,
        num_warps=metadata["num_warps"],
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        shared_bytes=metadata["shared"],
        loads_128=len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        stores_128=len(re.findall(r"st\.global[\w.:]*\.v4\.b32", ptx)),
        loads_128_expected=loads * a_block,
        stores_128_expected=stores * a_block,
    )


def _resources(cubin: Path) -> dict[str, int]:
    """Registers and bytes of stack of a compiled kernel, from the cuobjdump that comes with Triton."""
    command = [str(DISASSEMBLERS / "cuobjdump"), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}


def main() -> int:
    """Write the record; 1 when a kernel spills, takes too many registers or has narrow accesses."""
    parser = argparse.ArgumentParser(
        prog="python -m liteframe_kernels.ahead_of_time", description=__doc__.split("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    path: Path = parser.parse_args().output
    if INTERPRETING:
        parser.error("TRITON_INTERPRET is set; unset it, interpreted kernels cannot be compiled")
    newest = max(SHARED_MEMORY)
    rows = [
        row
        for arch in SHARED_MEMORY
        for row in compile_launches((launch for launch in launches() if arch == newest or not launch.edge), arch)
    ]
    record = {
        "written": datetime.date.today().isoformat(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "note": "compiled ahead of time; not measured on a GPU",
        "rows": [asdict(row) | {"problems": row.problems()} for row in rows],
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)
    for row in rows:
        problems = "; ".join(row.problems()) or "ok"
        print(f"sm_{row.arch} {row.registers:>4} registers  {row.name}  {problems}")
    return int(any(row.problems() for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
