"""Compile every kernel for Ampere and Hopper without a GPU, and record what it takes.

    python -m liteframe_kernels.ahead_of_time -o benchmarks/ahead_of_time.json

A row is one kernel, variant and architecture at the sizes of the paper's model in bfloat16: registers, bytes of stack
(0 where nothing spills), shared memory, and how many global accesses are 128 bits wide.
Runs in a process without TRITON_INTERPRET: kernels decorated for the interpreter cannot be compiled.
"""

import argparse
import datetime
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from liteframe_kernels import launch
from liteframe_kernels.backend import INTERPRETING
from liteframe_kernels.strided_conv import triton as strided
from liteframe_kernels.temporal_conv import triton as temporal
from liteframe_kernels.weighted_average_pool import triton as pool

ARCHITECTURES = (80, 90)
MAX_REGISTERS = 128
DISASSEMBLERS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {"p_w": "*fp32", "p_b": "*fp32", "p_part": "*fp32", "p_l": "*fp32", "p_mask": "*u8"}


@dataclass(frozen=True)
class Variant:
    """A kernel as it is launched; loads and stores are the 128-bit accesses to tokens it must have."""

    name: str
    kernel: Any
    config: triton.Config
    constants: dict[str, Any]
    loads: int
    stores: int
    arguments: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """What one compiled variant takes."""

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
        """What keeps the variant from running at the speed of memory."""
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


def variants() -> Iterator[Variant]:
    """Every kernel with every configuration it can be launched with, at the paper's sizes."""
    conv = {"K": 3, "LEFT": 1, "RESIDUAL": True, "ACC": tl.float32, "BC": 256}
    for config in temporal.FORWARD.configs:
        frames = config.kwargs["BT"]
        name = f"temporal_conv forward {_tile(config)}"
        yield Variant(name, temporal.FORWARD.kernel, config, {**conv, "BIAS": True}, frames + 2, frames)
    config = temporal.BACKWARD.configs[0]
    frames = config.kwargs["BT"]
    constants = {**conv, "NEED_DX": True, "NEED_DW": True}
    yield Variant("temporal_conv backward", temporal.BACKWARD.kernel, config, constants, 2 * frames + 2, frames)
    for kernel in ((2, 2, 2), (2, 1, 1)):
        window = {"KT": kernel[0], "KH": kernel[1], "KW": kernel[2], "CLS": True, "ACC": tl.float32, "BC": 256}
        space = kernel[1] * kernel[2]
        for config in strided.FORWARD.configs:
            name = f"strided_conv forward {kernel} {_tile(config)}"
            yield Variant(name, strided.FORWARD.kernel, config, {**window, "BIAS": True}, kernel[0] * space, 1)
        constants = {**window, "NEED_DX": True, "NEED_DW": True}
        name = f"strided_conv backward {kernel}"
        yield Variant(name, strided.BACKWARD.kernel, strided.BACKWARD.configs[0], constants, 1 + space, space)
    block = {"M": 16, "MB": 16, "KT": 4, "KH": 2, "KW": 2, "SCALE": 1 / 32, "ACC": tl.float32}
    for source in ("QUERY", "LOGITS"):
        mode = {**block, "QUERY": source == "QUERY", "LOGITS": source == "LOGITS", "MASK": source == "LOGITS"}
        constants = {**mode, "BC": 1024, "SINGLE": True}
        name = f"weighted_average_pool forward {source.lower()}"
        yield Variant(name, pool.FORWARD.kernel, pool.FORWARD.configs[0], constants, 8, 0)


def compile_variant(variant: Variant, arch: int) -> Row:
    """Compile for `arch` (80, 90) and read registers, spills and access widths from the result."""
    kernel, config = variant.kernel, variant.config
    constants = {**variant.constants, **config.kwargs}
    names = [name for name in kernel.arg_names if name not in constants]
    types = {name: variant.arguments.get(name, _type(name)) for name in names}
    constants |= {name: 1 for name, kind in types.items() if kind == "1"}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = [
        name for name in names if types[name] != "1" and (name.startswith("p_") or "stride" in name or name == "C")
    ]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {key: value for key, value in config.all_kwargs().items() if key not in config.kwargs}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", arch, 32),
        options={**options, **launch.FIXED_OPTIONS},
    )
    resources = _resources(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    return Row(
        name=variant.name,
        arch=arch,
        num_warps=config.num_warps,
        registers=resources["REG"],
        stack_bytes=resources["STACK"],
        shared_bytes=compiled.metadata.shared,
        loads_128=len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        stores_128=len(re.findall(r"st\.global[\w.:]*\.v4\.b32", ptx)),
        loads_128_expected=variant.loads,
        stores_128_expected=variant.stores,
    )


def _tile(config: triton.Config) -> str:
    return " ".join(f"{key}={value}" for key, value in config.kwargs.items())


def _type(name: str) -> str:
    return POINTERS.get(name, "*bf16") if name.startswith("p_") else "i32"


def _resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack of a compiled kernel, from the cuobjdump that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(DISASSEMBLERS / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", text)}


def main() -> int:
    """Write the record; 1 when a variant spills, takes too many registers or has narrow accesses."""
    parser = argparse.ArgumentParser(
        prog="python -m liteframe_kernels.ahead_of_time", description=__doc__.split("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    path: Path = parser.parse_args().output
    if INTERPRETING:
        parser.error("TRITON_INTERPRET is set; unset it, interpreted kernels cannot be compiled")
    rows = [compile_variant(variant, arch) for variant in variants() for arch in ARCHITECTURES]
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
        print(f"sm_{row.arch} {row.registers:>4} registers  {row.name}  {'; '.join(row.problems()) or 'ok'}")
    return int(any(row.problems() for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
