"""What this machine can do: devices, decoders, versions against the tested ones, and what is missing for what."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import av
import torch
from liteframe_kernels import backend_report
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import liteframe
from liteframe.cli.info import aligned

# The repository's constraints.txt, which the package brings along.
TESTED = Path(liteframe.__file__).parent / "constraints.txt"


class Need(NamedTuple):
    """Something that not everybody needs.

    Attributes:
        what: commands and options that need it.
        packages: names, all of them needed.
        remedy: the command that brings it.
    """

    what: str
    packages: tuple[str, ...]
    remedy: str


NEEDS = (
    Need("align --model.quantize nf4", ("bitsandbytes",), "pip install 'liteframe[quantize]'"),
    Need("export onnx", ("onnx", "onnxscript", "onnxruntime"), "pip install 'liteframe[onnx]'"),
    Need("eval of benchmarks in Parquet, manifest finevideo", ("pyarrow",), "pip install 'liteframe[eval]'"),
    Need("lmms-eval", ("lmms_eval", "datasets", "evaluate"),
         "pip install 'liteframe[lmms]' && pip install --no-deps lmms_eval"),
    Need("kernels on a GPU", ("triton",), "pip install triton"),
    Need("the faster of two readers of scanned videos", ("decord",), "pip install decord (Linux on x86_64 only)"),
)  # fmt: skip
ABSENT = "not installed"
CODECS = ("h264", "hevc", "vp9", "av1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`liteframe doctor` has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where LiteFrame cannot work as it is installed, else 0."""
    machine = [("liteframe", liteframe.__version__), ("python", platform.python_version())]
    machine += [("device", name) for name in devices()]
    machine += [(f"kernels, {key}", value) for key, value in backend_report().items()]
    machine += [("decoder", f"PyAV {_version('av')}: {', '.join(decoders())}; decord: {_version('decord')}")]
    print("\n".join(aligned(machine)))
    wrong = list(versions())
    print("\nVersions" + ("" if wrong else ", all within what is required"))
    print("\n".join(aligned(list(differences()))))
    for name, said, remedy in wrong:
        print(f"  WRONG: {name} is {said}\n      {remedy}")
    print("\nMissing")
    for what, names, remedy in lacking():
        print(f"  for {what}: {', '.join(names)}\n      {remedy}")
    if not list(lacking()):
        print("  nothing, for any command")
    return int(bool(wrong))


def devices() -> Iterator[str]:
    """The CPU, and each CUDA device, as torch sees them; or why there is none."""
    yield f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        half = "" if facts.major >= 8 else ", no bfloat16: training computes in float32"
        yield f"cuda:{index} {facts.name}, {memory:.0f} GiB, sm_{facts.major}{facts.minor}{half}"
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            yield "no GPU: this PyTorch is built without CUDA; https://pytorch.org/get-started/locally has others"
        elif Path("/proc/driver/nvidia/version").is_file():
            driver = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
            yield f"no GPU that PyTorch for CUDA {torch.version.cuda} can use: install a newer driver than {driver}"
        else:
            yield "no GPU: the kernel has no NVIDIA driver; everything runs on the CPU"


def decoders() -> list[str]:
    """Codecs that PyAV's FFmpeg decodes here."""
    return [codec for codec in CODECS if codec in av.codecs_available]


def tested_versions() -> dict[str, str]:
    """Package -> the version that the tests have run on."""
    pins = (line for line in TESTED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in map(Requirement, pins)}


def versions() -> Iterator[tuple[str, str, str]]:
    """Name, what is wrong and the remedy of each required package that is missing or outside of its range."""
    for requirement in _required():
        found = _version(requirement.name)
        if found == ABSENT or not requirement.specifier.contains(found, prereleases=True):
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            yield requirement.name, f"{found}; needed: {requirement.specifier or 'any version'}", remedy


def differences() -> Iterator[tuple[str, str]]:
    """Name and versions of each required package that is another than the tested one."""
    tested = tested_versions()
    for requirement in _required():
        found, known = _version(requirement.name), tested.get(canonicalize_name(requirement.name))
        if found != ABSENT:
            yield requirement.name, found if found == known else f"{found} (tested: {known})"


def lacking() -> Iterator[tuple[str, list[str], str]]:
    """What cannot be done here, the packages or programs that it lacks, and the command that brings them."""
    for need in NEEDS:
        if absent := [name for name in need.packages if _version(name) == ABSENT]:
            yield need.what, absent, need.remedy
    if not shutil.which(os.environ.get("CXX", "c++")):
        yield "export torch --compiled and distill --model.compile true", ["a C++ compiler"], "apt-get install g++"


def _required() -> list[Requirement]:
    try:
        wanted = [Requirement(line) for line in requires("liteframe") or ()]
    except PackageNotFoundError as error:
        raise ValueError("liteframe's files are here, but it is not installed: pip install -e .") from error
    return [w for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        return ABSENT
