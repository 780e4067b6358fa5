"""onnxruntime against torch: largest relative difference and CPU time of an exported encoder, float32 and float16.

python benchmarks/onnx_parity.py [--encoder FOLDER] [-o benchmarks]

Without --encoder: a student of the paper's width and depth (87M) at 112 pixels, with random weights of which every part
counts. Writes benchmarks/onnx_parity.{json,md} from the parity reports of `liteframe export onnx`.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from liteframe_export.onnx_encoder import DTYPES, export_onnx
from torch import nn

from liteframe.bench.timing import machine
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="encoder folder; default: 87M at 112 pixels, random weights")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.encoder or random_encoder(Path(scratch) / "encoder")
        reports = {dtype: export_onnx(folder, Path(scratch) / dtype, dtype=dtype) for dtype in DTYPES}
    what = str(args.encoder) if args.encoder else "87M student at 112 pixels, random weights"
    record = {"machine": machine(torch.device("cpu")), "encoder": what, "reports": reports}
    write_json(args.output / "onnx_parity.json", record)
    write_atomically(args.output / "onnx_parity.md", as_markdown(record).encode())


def random_encoder(folder: Path) -> Path:
    """The paper's student for small frames; temporal convolutions start at zero, where they would go untested."""
    torch.manual_seed(0)
    encoder = LiteFrameEncoder(LiteFrameConfig(image_size=112))
    for name, parameter in encoder.named_parameters():
        if "temporal" in name or "downsample" in name:
            nn.init.normal_(parameter, std=0.2)
    encoder.save_pretrained(folder)
    return folder


def as_markdown(record: dict[str, Any]) -> str:
    """A row for each size and dtype."""
    where = record["machine"]
    first = next(iter(record["reports"].values()))
    runtime = ", ".join(f"{name} {number}" for name, number in first["runtime"].items())
    lines = [
        "# Encoder in onnxruntime\n",
        f"{record['encoder']}; {where['device']}, {first['threads']} threads, {runtime}, {where['date']}. Made by "
        "`python benchmarks/onnx_parity.py`. Difference: the largest, as a part of the largest feature, against the "
        "encoder in float32 under torch; times are medians of 5. onnxruntime has few float16 kernels for CPUs: those "
        "times say nothing about a GPU.\n",
        "| dtype | video [B,T,3,H,W] | difference | torch float32 ms | onnxruntime ms |",
        "|---|---|---|---|---|",
    ]
    for dtype, report in record["reports"].items():
        for case in report["cases"]:
            cells = [dtype, str(case["video"]), f"{case['relative_difference']:.1e}"]
            cells += [f"{case['torch_ms']:.1f}", f"{case['graph_ms']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
