"""What a still image costs and how near its features are: as a still, and repeated to a slot of four frames.

python benchmarks/stills.py --work FOLDER [-o benchmarks]     # two minutes of one core a seed

FLOPs of the paper's student are counted, and its CPU seconds are measured in turns, with random weights. Cosines are of
toyworld students that never saw a still, to the teacher's features of the still, pooled over space. FOLDER keeps the
teacher's features of the clips; what is in the record is not done again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from claims_cells import Workshop
from claims_plan import SEEDS, Setup, Variant
from torch import Tensor, nn
from toy_students import distil

from liteframe import LiteFrameConfig, LiteFrameEncoder, cost
from liteframe.bench.timing import machine
from liteframe.files import write_atomically, write_json
from liteframe.models.student.inference import normalized
from liteframe.reduce.pooled_teacher import PooledTeacher

WAYS = ("repeated", "still")


@dataclass(frozen=True)
class Sizes:
    """How much to run: students, the encoder that is timed, and how often."""

    students: Setup = field(default_factory=Setup)
    timed: LiteFrameConfig = field(default_factory=LiteFrameConfig)
    runs: int = 2


def main(work: Path, output: Path, sizes: Sizes | None = None, seeds: Sequence[int] = SEEDS) -> None:
    """Count, measure, train, write after each seed."""
    work.mkdir(parents=True, exist_ok=True)
    sizes, file = sizes or Sizes(), output / "stills.json"
    record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {
        "machine": machine(torch.device("cpu")),
        "steps": sizes.students.steps,
        "flops": {way: flops(sizes.timed, way) for way in WAYS},
        "seconds": seconds(sizes),
        "cosine": [],
    }  # fmt: skip
    write_json(file, record)
    workshop = Workshop(work, sizes.students)
    for seed in seeds:
        if seed not in [row["seed"] for row in record["cosine"]]:
            record["cosine"].append({"seed": seed, **cosines(workshop, seed)})
        write_json(file, record)
        write_atomically(output / "stills.md", as_markdown(record).encode())


def flops(config: LiteFrameConfig, way: str) -> int:
    """Of one image, attention products included."""
    one = cost(config, 1, still=way == "still")
    return one.flops + one.attention_flops


@torch.inference_mode()
def seconds(sizes: Sizes) -> dict[str, float]:
    """Seconds of CPU time of one image, by way, in the form that encodes fastest: the least of the runs, in turns."""
    torch.manual_seed(0)
    form, side = LiteFrameEncoder(sizes.timed).eval().for_inference(), sizes.timed.image_size
    image = torch.randint(0, 256, (1, 1, 3, side, side), dtype=torch.uint8)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(sizes.runs):
        for way, samples in taken.items():
            began = time.process_time()
            form(image, still=way == "still")
            samples.append(time.process_time() - began)
    return {way: min(samples) for way, samples in taken.items()}


@torch.no_grad()
def cosines(workshop: Workshop, seed: int) -> dict[str, Any]:
    """Mean cosine to the teacher's pooled features by way, over the first frame of each held-out clip."""
    with torch.enable_grad():
        student, _ = distil(workshop.material, workshop.setup, Variant(), seed)
    pooled = PooledTeacher(workshop.teacher, student.config.compression)
    found: dict[str, list[Tensor]] = {way: [] for way in WAYS}
    for clips in workshop.material.held_out:
        images = normalized(clips.frames[:, 0], student.config, torch.float32)  # [N,3,H,W]
        own = pooled(images.unsqueeze(1)).tokens  # [N,1,h,w,C]
        for way, tokens in {"repeated": student(images.unsqueeze(1)), "still": student.still(images)}.items():
            found[way].append(nn.functional.cosine_similarity(tokens, own, dim=-1).flatten(1).mean(1))
    return {"stills": len(torch.cat(found["still"])), **{way: torch.cat(found[way]).mean().item() for way in WAYS}}


def as_markdown(record: dict[str, Any]) -> str:
    """The table."""
    where, seeds = record["machine"], [row["seed"] for row in record["cosine"]]
    heads = " | ".join(f"cosine, seed {seed}" for seed in seeds)
    lines = [
        "# A still image\n",
        "The paper's student, one image of 448 x 448: FLOPs counted, attention products included; CPU seconds on "
        f"{where['device']}, {where['threads']} thread(s), float32, torch {where['torch']}, {where['date']}, random "
        f"weights. Cosine: toyworld students after {record['steps']} steps on clips, {record['cosine'][0]['stills']} "
        "stills of unseen scenes, to the teacher's features of the still, pooled over space.\n",
        f"| one image | GFLOP | CPU seconds | {heads} |",
        "|---|---:|---:|" + "---:|" * len(seeds),
    ]
    names = {"repeated": "repeated to a slot of four frames", "still": "as a still"}
    for way in WAYS:
        cells = " | ".join(f"{row[way]:.3f}" for row in record["cosine"])
        lines.append(f"| {names[way]} | {record['flops'][way] / 1e9:.1f} | {record['seconds'][way]:.2f} | {cells} |")
    lines.append("\nNot measured on a GPU. Made by `python benchmarks/stills.py`.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the teacher's features")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    main(args.work, args.output)
