"""Large frames whole against large frames in crops: FLOPs of the paper's student, time and memory of a narrow one here.

python benchmarks/high_resolution.py [-o benchmarks] [--sizes 448,896,1344] [--rounds 3]

Whole frames: attention among all patches of a frame, positions resampled. Crops: views of 448 pixels and the whole
frame made small, as `liteframe ask --crops` encodes them; that is attention in windows of 32 x 32 patches, each with
positions and a cls token of its own. FLOPs are counted for 16 frames and the 87M student; time and peak memory are
measured on a CPU, in turns, each in a process of its own, for 4 frames and a student of 192 channels (12 blocks).
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from liteframe.bench.timing import machine
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import cost
from liteframe.models.student.encoder import LiteFrameEncoder

VIEW = 448
COUNTED = (448, 896, 1344, 2688)
FRAMES = 4
WAYS = ("whole", "crops")


def main(argv: Sequence[str] | None = None) -> None:
    """Count, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks"))
    parser.add_argument("--sizes", default="448,896,1344", help="measured, in pixels a side (default 448,896,1344)")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring, in turns (default 3)")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    sizes = [int(size) for size in args.sizes.split(",")]
    record = {
        "machine": machine(torch.device("cpu")),
        "counted": [counted(size) for size in COUNTED],
        "measured": measured(sizes, args.rounds),
    }
    write_json(args.output / "high_resolution.json", record)
    write_atomically(args.output / "high_resolution.md", as_markdown(record).encode())


def views(size: int, way: str) -> tuple[int, int]:
    """How many frames of how many pixels a side stand for one of `size`.

    Raises:
        ValueError: crops do not fill the frame.
    """
    if size % VIEW:
        raise ValueError(f"{size} pixels are no multiple of a view's {VIEW}")
    crops = (size // VIEW) ** 2
    return (1, size) if way == "whole" or crops == 1 else (crops + 1, VIEW)


def counted(size: int) -> dict[str, Any]:
    """FLOPs of 16 frames of the 87M student, attention products included."""
    row: dict[str, Any] = {"size": size}
    for way in WAYS:
        number, side = views(size, way)
        one = cost(LiteFrameConfig(), 16, side)
        row[way] = {"flops": number * (one.flops + one.attention_flops), "attention": number * one.attention_flops}
    return row


def measure(way: str, size: int) -> dict[str, float]:
    """Seconds of encoding FRAMES frames, and the peak of this process's memory above what it takes without frames."""
    torch.manual_seed(0)
    encoder = LiteFrameEncoder(LiteFrameConfig(dim=192, heads=3)).eval().for_inference()
    number, side = views(size, way)
    with torch.inference_mode():
        encoder(torch.zeros(1, FRAMES, 3, 56, 56, dtype=torch.uint8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        video = torch.randint(0, 256, (number, FRAMES, 3, side, side), dtype=torch.uint8)
        start = time.perf_counter()
        for view in video:  # as many at a time as a session encodes
            encoder(view[None])
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def measured(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Medians of `rounds` rounds, all sizes and ways in turns."""
    samples: dict[tuple[int, str], list[dict[str, float]]] = {(size, way): [] for size in sizes for way in WAYS}
    for _ in range(rounds):
        for (size, way), found in samples.items():
            command = [sys.executable, __file__, "--one", way, str(size)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(output))
    return [
        {"size": size, "way": way, **{name: median(sample[name] for sample in found) for name in found[0]}}
        for (size, way), found in samples.items()
    ]


def as_markdown(record: dict[str, Any]) -> str:
    """Both tables."""
    where = record["machine"]
    lines = [
        "# Large frames, whole and in crops\n",
        "FLOPs of 16 frames, the 87M student, attention products included (their share in brackets):\n",
        "| pixels a side | whole, TFLOP | crops and base view, TFLOP | whole / crops |",
        "|---:|---:|---:|---:|",
    ]
    for row in record["counted"]:
        whole, crops = (
            f"{row[way]['flops'] / 1e12:.2f} ({100 * row[way]['attention'] / row[way]['flops']:.0f} %)" for way in WAYS
        )
        ratio = row["whole"]["flops"] / row["crops"]["flops"]
        lines.append(f"| {row['size']} | {whole} | {crops} | {ratio:.2f} |")
    lines += [
        f"\nA student of 192 channels, {FRAMES} frames, float32, {where['device']}, {where['threads']} threads, torch "
        f"{where['torch']}, {where['date']}; medians, in turns, each in a process of its own. Memory is the peak above "
        "that of the process before.\n",
        "| pixels a side | whole, s | crops, s | whole, MiB | crops, MiB |",
        "|---:|---:|---:|---:|---:|",
    ]
    by_size: dict[int, dict[str, Any]] = {}
    for sample in record["measured"]:
        by_size.setdefault(sample["size"], {})[sample["way"]] = sample
    for size, ways in by_size.items():
        seconds = " | ".join(f"{ways[way]['seconds']:.2f}" for way in WAYS)
        lines.append(f"| {size} | {seconds} | " + " | ".join(f"{ways[way]['mib']:.0f}" for way in WAYS) + " |")
    lines.append("\nNot measured on a GPU. Made by `python benchmarks/high_resolution.py`.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
