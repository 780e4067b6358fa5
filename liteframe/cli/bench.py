"""Measure kernels, encoders and whole Video LLMs on this machine: correctness first, then time."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from liteframe_export.bundle import bundle, load_bundle
from torch import nn

from liteframe.bench.bytes import measure_bytes, write_bytes
from liteframe.bench.comparison import Comparison, compare
from liteframe.bench.encoder import Setup, measure_encoders
from liteframe.bench.first_token import first_token, write_sample
from liteframe.bench.kernels import comparisons
from liteframe.bench.latency import add_ratios, measure_latencies
from liteframe.bench.reducers import measure_reducers, reducer_table
from liteframe.bench.report import write_latency, write_report
from liteframe.bench.systems import LITEFRAME, build_systems, load_pair, random_internvl3_8b
from liteframe.bench.timing import copy_bandwidth, machine, matmul_rate
from liteframe.files import check_output, write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.vlm.load import find_device, load_processor
from liteframe.models.vlm.vision import LiteFrameVisionModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
FRAMES = (8, 32, 64, 128, 256, 512)
LATENCY_FRAMES = (8, 16, 32, 64, 128, 256, 512)
REDUCER_FRAMES = (32,)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe bench`."""
    subjects = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for what, summary in (
        ("kernels", "the kernels one by one, against other implementations"),
        ("encoder", "teacher, student without compression, student"),
    ):
        sub = subjects.add_parser(what, help=summary, description=summary[0].upper() + summary[1:] + ".")
        _add_protocol(sub)
        sub.add_argument("--frames", type=int, nargs="+", metavar="N", help="kernels: 256; encoder: 8 32 ... 512")
        sub.add_argument("--size", type=int, default=448, metavar="PIXELS", help="side of a frame (default: 448)")
        sub.add_argument("--tiny", action="store_true", help="64 channels and few layers, for a machine without a GPU")
        sub.add_argument("--no-compile", action="store_true", help="leave out what needs torch.compile")
    summary = "vision, projector and prefill of teacher VLM, teacher + WAP and LiteFrame, beside the paper's table"
    sub = subjects.add_parser("latency", help=summary, description=summary[0].upper() + summary[1:] + ".")
    _add_protocol(sub)
    sub.add_argument(
        "--vlm", help="folder or id of an InternVL; default: the shapes of InternVL3-8B with random weights"
    )
    sub.add_argument("--encoder", help="folder of a LiteFrame encoder that fits it; needed with --vlm")
    sub.add_argument("--frames", type=int, nargs="+", default=list(LATENCY_FRAMES), metavar="N", help="8 16 ... 512")
    sub.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="videos at a time (default: 1)")
    summary = "what reducers cost: their signals and the reduction, at the shapes of InternVL3-8B"
    sub = subjects.add_parser("reducers", help=summary, description=summary[0].upper() + summary[1:] + ".")
    _add_protocol(sub)
    sub.add_argument("--frames", type=int, nargs="+", default=list(REDUCER_FRAMES), metavar="N", help="32")
    sub.add_argument("--ratio", type=float, default=1 / 16, metavar="R", help="tokens to keep (default: 0.0625)")
    sub.add_argument("--tiny", action="store_true", help="64 channels and 16 tokens a frame, to try it out")
    summary = "bytes that teacher, student, exports and a training step move at full size; counted, needs no GPU"
    sub = subjects.add_parser("bytes", help=summary, description=summary[0].upper() + summary[1:] + ".")
    _add_output(sub)


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--warmup", type=int, default=40, metavar="N", help="calls that are not counted (40)")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="calls that are counted (100)")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks"), metavar="DIR", help="for the report")


def run(args: argparse.Namespace) -> int:
    """Write the report; 1 when an implementation of ours gives wrong results."""
    check_output(args.output, folder=True)
    if args.what == "bytes":
        return _bytes(args)
    device = find_device(args.device)
    if args.runs < 1 or args.warmup < 0 or min(args.frames or [1]) < 1:
        raise ValueError("--runs and --frames must be at least 1, --warmup at least 0")
    if args.what == "latency":
        return _latency(args, device)
    if args.what == "reducers":
        return _reducers(args, device)
    record = _kernels(args, device) if args.what == "kernels" else _encoders(args, device)
    for path in write_report(record, args.output, args.what):
        print(path)
    wrong = [row for row in record["rows"] if row["status"] == "wrong"]
    for row in wrong:
        names = ("kernel", "label", "direction", "implementation", "encoder", "variant", "frames")
        what = ", ".join(str(row[name]) for name in names if name in row)
        print(f"{what}: error {row['error']:.1e}", file=sys.stderr)
    return int(any(row.get("implementation", "triton") == "triton" for row in wrong))


def _bytes(args: argparse.Namespace) -> int:
    for path in write_bytes(measure_bytes(_say, exported_encoder), args.output):
        print(path)
    return 0


def exported_encoder(config: LiteFrameConfig, triton: bool) -> nn.Module:
    """The encoder on "meta", by the code that an export carries, as a machine with or without Triton runs it."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle([LiteFrameVisionModel.__module__], Path(scratch))
        carried: Any = load_bundle(Path(scratch), LiteFrameVisionModel.__module__)
        if not triton:
            sys.modules[f"{carried.__package__}.backend"].CUDA_BACKEND = "reference"  # type: ignore[attr-defined]
    with torch.device("meta"):
        return carried.LiteFrameVisionModel(carried.LiteFrameVisionConfig(**config.to_dict()))


def _latency(args: argparse.Namespace, device: torch.device) -> int:
    if bool(args.vlm) != bool(args.encoder):
        raise ValueError("--vlm and --encoder go together; without both, InternVL3-8B's shapes are measured")
    if args.vlm is None and device.type != "cuda":
        raise ValueError("InternVL3-8B's shapes need a GPU; on a CPU name a small --vlm and its --encoder")
    if min(args.batch) < 1:
        raise ValueError("--batch must be at least 1")
    if args.vlm is None:
        vlm, encoder = random_internvl3_8b(device, DTYPES[args.dtype])
    else:
        vlm, encoder = load_pair(args.vlm, args.encoder, device, DTYPES[args.dtype])
    systems = build_systems(vlm, encoder)
    protocol = {"warmup": args.warmup, "runs": args.runs}
    setup = {
        "vlm": args.vlm,
        "encoder": args.encoder,
        "random_weights": args.vlm is None,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        **protocol,
    }
    rows: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    record = {"machine": machine(device), "setup": setup, "rows": rows, "first_token": first}
    for found in measure_latencies(systems, args.frames, args.batch, progress=_say, **protocol):
        rows += found
        add_ratios(rows)
        write_latency(record, args.output)  # so far: whoever stops it keeps what was measured
    counts = _readable(rows)
    if args.vlm is not None and counts:
        (model, _), processor = systems[LITEFRAME], load_processor(args.vlm, args.encoder)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "sample.mp4"
            write_sample(path, max(counts), processor.frame_size)
            for count in counts:
                _say(f"first token, {count} frames")
                first.append({"frames": count, **first_token(model, processor, path, count, min(args.runs, 20))})
    for path in write_latency(record, args.output):
        print(path)
    return 0


def _reducers(args: argparse.Namespace, device: torch.device) -> int:
    if not 0 < args.ratio <= 1:
        raise ValueError(f"--ratio is above 0 and at most 1, got {args.ratio}")
    protocol = {"warmup": args.warmup, "runs": args.runs}
    rows: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    setup = {"dtype": args.dtype, "ratio": args.ratio, "tiny": args.tiny, "threads": threads, **protocol}
    for frames in args.frames:
        rows += measure_reducers(
            frames, args.ratio, device, DTYPES[args.dtype], tiny=args.tiny, progress=_say, **protocol
        )
        record = {"machine": machine(device), "setup": setup, "rows": rows}
        write_json(args.output / "reducers.json", record)
        write_atomically(args.output / "reducers.md", reducer_table(record).encode())
    print(args.output / "reducers.json", args.output / "reducers.md", sep="\n")
    return int(any(row["status"] == "wrong" for row in rows))


def _readable(rows: list[dict[str, Any]]) -> list[int]:
    """Numbers of frames at which LiteFrame fits."""
    return sorted({row["frames"] for row in rows if row["system"] == LITEFRAME and "total_ms" in row})


def _kernels(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    dtype = DTYPES[args.dtype]
    frames = (args.frames or [256])[0]
    protocol = {"warmup": args.warmup, "runs": args.runs}
    rows = []
    side = args.size // 14
    channels = 64 if args.tiny else 768
    copied = frames * (1 + side * side) * channels * dtype.itemsize
    bandwidth = copy_bandwidth(device, copied, **protocol)
    for comparison in _comparisons(args, device, frames, side, channels):
        _say(f"{comparison.kernel}, {comparison.label}")
        rows += compare(comparison, device, copy_bytes_per_s=bandwidth, **protocol)
    return {
        "machine": machine(device),
        "setup": {"dtype": args.dtype, "frames": frames, "size": args.size, "tiny": args.tiny, **protocol},
        "copy_bytes_per_s": bandwidth,
        "matmul_flop_per_s": matmul_rate(device, dtype, **protocol),
        "rows": rows,
    }


def _comparisons(
    args: argparse.Namespace, device: torch.device, frames: int, side: int, channels: int
) -> Iterator[Comparison]:
    """The operations of the paper's model: 448 pixels give a side of 32 patches of 14 pixels."""
    if frames % 4 or args.size % 28 or side == 0:
        raise ValueError(f"--frames {frames} must be a multiple of 4 and --size {args.size} one of 28")
    return comparisons(
        device,
        DTYPES[args.dtype],
        frames=frames,
        side=side,
        channels=channels,
        teacher_channels=64 if args.tiny else 1024,
        compiled=not args.no_compile,
    )


def _encoders(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    setup = Setup(
        frames=tuple(args.frames or FRAMES),
        size=args.size,
        dtype=DTYPES[args.dtype],
        warmup=args.warmup,
        runs=args.runs,
        compiled=not args.no_compile,
        tiny=args.tiny,
    )
    return measure_encoders(setup, device, _say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
