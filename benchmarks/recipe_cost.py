"""What the paper's recipe costs with and without a target cache: arithmetic from
liteframe.models.student.cost, beside it what decoding takes on this machine.

python benchmarks/recipe_cost.py

Writes benchmarks/recipe_cost.json, and the tables between the markers of docs/cost.md. A measured rate comes from
benchmarks/encoder.json when `liteframe bench encoder` has run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import av
import numpy as np

from liteframe.data.video.reader import read_frames
from liteframe.distill.cache.codec import clip_bytes, decode_jpeg, encode_jpeg
from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import INTERNVIT_300M, cost

ROOT = Path(__file__).resolve().parents[1]
MARKERS = ("<!-- recipe -->\n", "<!-- /recipe -->")
NO_GPU = "not measured on a GPU"
VIEWS = (1, 8, 30)
SIZE = 448


@dataclass(frozen=True)
class Assumptions:
    """What the paper states (days, GPUs, epochs) and what it does not (all the rest).

    Attributes:
        days: of CTD.
        gpus: H100.
        epochs: of CTD.
        peak: bf16 FLOP/s of an H100.
        utilization: part of the peak that is reached, attention products counted; tried at each of these.
        jpeg_bytes: of a 448 x 448 frame at quality 90.
        jpeg_rate: frames/s that one core decodes from such files.
        sequential_rate: frames/s that one core decodes of a 720p H.264 file from its start.
        random_rate: useful frames/s of one core in random clips of 16 frames, 4 apart, of the same files.
        lma_frames: budgets of frames of LMA.
        lma_samples: of LMA: 25,000 steps of 128.
        lm_dim, lm_kv_dim, lm_hidden, lm_layers: shape of Qwen2.5-7B.
    """

    days: float = 21
    gpus: int = 8
    epochs: int = 1800
    peak: float = 989e12
    utilization: tuple[float, ...] = (0.35, 0.45, 0.55)
    jpeg_bytes: int = 34_000
    jpeg_rate: float = 1500
    sequential_rate: float = 209
    random_rate: float = 60
    lma_frames: tuple[int, ...] = (128, 256, 512)
    lma_samples: int = 25_000 * 128
    lm_dim: int = 3584
    lm_kv_dim: int = 512
    lm_hidden: int = 18944
    lm_layers: int = 28


def per_frame() -> dict[str, dict[str, float]]:
    """FLOPs of a frame: teacher forward, student forward and backward (twice the forward), the teacher's share."""
    teacher, student = cost(INTERNVIT_300M, 256), cost(LiteFrameConfig(), 256)
    counts = {
        "linear": (teacher.flops, student.flops),
        "full": (teacher.flops + teacher.attention_flops, student.flops + student.attention_flops),
    }
    return {
        name: {
            "teacher": t / 256,
            "student": 3 * s / 256,
            "teacher_share": t / (t + 3 * s),
            "ceiling": (t + 3 * s) / (3 * s),
        }
        for name, (t, s) in counts.items()
    }


def lma_sample(given: Assumptions) -> dict[str, float]:
    """FLOPs of a sample of LMA, mean over the budgets, attention products counted.

    The frozen encoder runs forward; the language model forward, again for its checkpointed activations, and backward to
    the activations, since LoRA's own matrices are small; each visual token attends to half of the others.
    """
    encoder = [cost(LiteFrameConfig(), frames) for frames in given.lma_frames]
    tokens = [frames * price.tokens_per_frame for frames, price in zip(given.lma_frames, encoder, strict=True)]
    c, kv, hidden, layers = given.lm_dim, given.lm_kv_dim, given.lm_hidden, given.lm_layers
    weights = layers * (2 * c * c + 2 * c * kv + 3 * c * hidden)
    return {
        "encoder": fmean(price.flops + price.attention_flops for price in encoder),
        "language_model": fmean(3 * 2 * weights * n + 4 * 2 * layers * c * n * n for n in tokens),
    }


def recipe(given: Assumptions) -> dict[str, Any]:
    """Everything that follows from the assumptions."""
    flops = per_frame()
    full = flops["full"]
    gpu_hours = given.days * 24 * given.gpus
    taught = gpu_hours * full["teacher_share"]
    frames = LiteFrameConfig().clip_frames
    shape = (frames // 4, SIZE // 28, SIZE // 28, INTERNVIT_300M.dim)
    stored = {codec: clip_bytes(codec, shape) / frames for codec in ("bf16", "int8")}
    stored["jpeg"] = given.jpeg_bytes
    language = lma_sample(given)
    rates = []
    for part in given.utilization:
        live = given.gpus * given.peak * part / (full["teacher"] + full["student"])
        cached = live * full["ceiling"]
        epoch = live * given.days * 86400 / given.epochs
        rates.append(
            {
                "utilization": part,
                "live_frames_per_second": live,
                "cached_frames_per_second": cached,
                "frames_per_epoch": epoch,
                "view_bytes": {name: epoch * size for name, size in stored.items()},
                "read_bytes_per_second": {name: cached * size for name, size in stored.items()},
                "lma_gpu_hours": sum(language.values()) * given.lma_samples / (given.peak * part) / 3600,
                "cores": {
                    "jpeg": cached / given.jpeg_rate,
                    "sequential": cached / given.sequential_rate,
                    "random": cached / given.random_rate,
                },
            }
        )
    return {
        "flops_per_frame": flops,
        "bytes_per_frame": stored,
        "lma_flops_per_sample": language,
        "live_gpu_hours": gpu_hours,
        "cached_gpu_hours": {views: gpu_hours - taught + taught * views / given.epochs for views in VIEWS},
        "build_gpu_hours": {views: taught * views / given.epochs for views in VIEWS},
        "rates": rates,
    }


def measured_rate(encoder: Path) -> dict[str, float] | None:
    """Seconds of a frame on a GPU: teacher forward, and student forward and backward taken as three forwards.

    Returns:
        From the best variants at 256 frames, or None where the benchmark has not run on a GPU.
    """
    record = json.loads(encoder.read_text())
    if not record["machine"]["measured_on_gpu"]:
        return None
    best = {
        name: min(row["median_ms"] for row in record["rows"]
                  if row["encoder"] == name and row["frames"] == 256 and "median_ms" in row) / 256e3
        for name in ("teacher", "student")
    }  # fmt: skip
    live, cached = best["teacher"] + 3 * best["student"], 3 * best["student"]
    return {"live_frames_per_second": 1 / live, "cached_frames_per_second": 1 / cached, "ratio": live / cached}


def decoding(folder: Path) -> dict[str, float]:
    """Frames a second of CPU time: of a 720p H.264 file, in order and in random clips, and of JPEG files."""
    path, count = folder / "720p.mp4", 300
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (800, 1400, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for t in range(count):
            # A drifting texture, coarse enough to be like a picture
            image = np.repeat(np.repeat(texture[t // 8 : t // 8 + 90, t // 4 : t // 4 + 160], 8, 0), 8, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    files = [encode_jpeg(read_frames(path, [t])[0, :SIZE, :SIZE], 90) for t in (0, 40, 80, 120)]
    clips = [[start + 4 * i for i in range(16)] for start in rng.integers(0, count - 64, 6)]
    return {
        "sequential": _rate(count, lambda: read_frames(path, list(range(count)))),
        "random": _rate(16 * len(clips), lambda: [read_frames(path, clip) for clip in clips]),
        "jpeg": _rate(100, lambda: [decode_jpeg(files[i % 4], (SIZE, SIZE)) for i in range(100)]),
        "jpeg_bytes": float(np.mean([len(file) for file in files])),
    }


def _rate(frames: int, call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return frames / (time.process_time() - began)


def tables(record: dict[str, Any]) -> str:
    """Markdown of the record."""
    given, result = record["assumptions"], record["recipe"]
    lin, full = result["flops_per_frame"]["linear"], result["flops_per_frame"]["full"]
    middle = result["rates"][len(result["rates"]) // 2]
    measured = record["measured_rate"]
    all_hours = middle["lma_gpu_hours"] * middle["utilization"] / given["gpus"]
    lines = [
        "| per frame of 448x448 | linear and conv, as the paper counts | with attention products |",
        "|---|---:|---:|",
        f"| teacher, forward | {lin['teacher'] / 1e12:.3f} TFLOP | {full['teacher'] / 1e12:.3f} TFLOP |",
        f"| student, forward and backward | {lin['student'] / 1e12:.3f} TFLOP | {full['student'] / 1e12:.3f} TFLOP |",
        f"| teacher's share of a step | {lin['teacher_share']:.1%} | {full['teacher_share']:.1%} |",
        f"| step with and without teacher, at most | {lin['ceiling']:.2f}x | {full['ceiling']:.2f}x |",
        "",
        f"| CTD, {given['epochs']} epochs on {given['gpus']} H100 | GPU-hours | of it building the cache | days |",
        "|---|---:|---:|---:|",
        f"| live, as the paper states | {result['live_gpu_hours']:,.0f} | | {given['days']:.1f} |",
    ]
    for views, hours in result["cached_gpu_hours"].items():
        build = result["build_gpu_hours"][views]
        lines.append(f"| cached, K = {views} | {hours:,.0f} | {build:.1f} | {hours / 24 / given['gpus']:.1f} |")
    lines += [
        "",
        "| at a utilization of | " + " | ".join(f"{rate['utilization']:.0%}" for rate in result["rates"]) + " |",
        "|---|" + "---:|" * len(result["rates"]),
    ]

    def read(rate: dict[str, Any], what: str) -> float:
        return rate["read_bytes_per_second"][what]

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("frames of an epoch", lambda r: f"{r['frames_per_epoch'] / 1e6:.2f} M"),
        ("frames/s, live", lambda r: f"{r['live_frames_per_second']:,.0f}"),
        ("frames/s, cached", lambda r: f"{r['cached_frames_per_second']:,.0f}"),
        ("one view, targets in bf16", lambda r: f"{r['view_bytes']['bf16'] / 1e9:,.0f} GB"),
        ("one view, targets in int8", lambda r: f"{r['view_bytes']['int8'] / 1e9:,.0f} GB"),
        ("one view, frames as JPEG", lambda r: f"{r['view_bytes']['jpeg'] / 1e9:,.0f} GB"),
        ("read rate, int8 targets and JPEG frames", lambda r: f"{(read(r, 'int8') + read(r, 'jpeg')) / 1e9:.2f} GB/s"),
        ("read rate, bf16 targets alone", lambda r: f"{read(r, 'bf16') / 1e9:.2f} GB/s"),
        ("GPU-hours of LMA", lambda r: f"{r['lma_gpu_hours']:,.0f}"),
        ("decoding cores, cached JPEG frames", lambda r: f"{r['cores']['jpeg']:.0f}"),
        ("decoding cores, 720p files from start to end", lambda r: f"{r['cores']['sequential']:.0f}"),
        ("decoding cores, random clips of 720p files", lambda r: f"{r['cores']['random']:.0f}"),
    ]  # fmt: skip
    lines += [f"| {name} | " + " | ".join(show(rate) for rate in result["rates"]) + " |" for name, show in rows]
    here = record["decoding_here"]
    stored = result["bytes_per_frame"]
    lines += [
        "",
        f"A frame's target takes {stored['bf16'] / 1e3:.1f} kB in bf16 and {stored['int8'] / 1e3:.1f} kB in int8. "
        f"At {middle['utilization']:.0%}, K = 8 views take {8 * middle['view_bytes']['int8'] / 1e12:.1f} TB in int8, "
        f"and {8 * middle['view_bytes']['jpeg'] / 1e12:.1f} TB of JPEG. A sample of LMA takes "
        f"{result['lma_flops_per_sample']['encoder'] / 1e12:.0f} TFLOP in the encoder and "
        f"{result['lma_flops_per_sample']['language_model'] / 1e12:.0f} in the language model. The paper gives a "
        f"few hours for LMA; these budgets, at a batch of 128, take {all_hours:.0f} even at the full peak.",
        "",
        f"Measured GPU rate: {NO_GPU}."
        if measured is None
        else f"Measured GPU rate: {measured['live_frames_per_second']:,.0f} frames/s a GPU live, "
        f"{measured['cached_frames_per_second']:,.0f} cached ({measured['ratio']:.2f}x), student's backward taken as "
        f"two forwards.",
        "",
        f"Decoding, frames a second of CPU time on the machine that wrote this table ({record['machine']}, made-up "
        f"pictures): {here['sequential']:.0f} of a 720p file in order, {here['random']:.0f} useful ones in random "
        f"clips of it, {here['jpeg']:.0f} from JPEG of {here['jpeg_bytes'] / 1e3:.0f} kB. The table assumes "
        f"{given['sequential_rate']:.0f}, {given['random_rate']:.0f} and {given['jpeg_rate']:.0f}, from an earlier "
        f"measurement on an idle machine, and {given['jpeg_bytes'] / 1e3:.0f} kB a frame.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Reckon, measure decoding, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, default=ROOT / "benchmarks" / "encoder.json", metavar="JSON")
    args = parser.parse_args(argv)
    import torch

    from liteframe.bench.timing import machine

    given = Assumptions()
    with tempfile.TemporaryDirectory() as folder:
        here = decoding(Path(folder))
    record = {
        "assumptions": asdict(given),
        "recipe": recipe(given),
        "measured_rate": measured_rate(args.encoder),
        "decoding_here": here,
        "machine": machine(torch.device("cpu"))["device"],
    }
    write_json(ROOT / "benchmarks" / "recipe_cost.json", record)
    insert(ROOT / "docs" / "cost.md", tables(json.loads(json.dumps(record))))


def insert(path: Path, text: str) -> None:
    """Put the text between the markers of a file."""
    before, rest = path.read_text().split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    write_atomically(path, (before + MARKERS[0] + text + MARKERS[1] + after).encode())


if __name__ == "__main__":
    main()
