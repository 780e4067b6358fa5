"""Do students far smaller than the main one train stably? Direct against progressive distillation, plain against EMA.

python benchmarks/small_students.py     # writes small_students.{json,md} beside this file; 14 minutes of one core

On toyworld, with the recipe's own parts: weight selection, WAP targets clamped at 3 sigma and standardized, AdamW with
warm-up and cosine, gradients clipped to norm 1. Clips are rendered and their targets computed once. A "direct" student
is cut from the teacher, a "progressive" one from a larger student that was trained first. EMA is measured on the same
runs, which it does not change.
"""

import argparse
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from liteframe import LiteFrameConfig, LiteFrameEncoder, cost, load_teacher
from liteframe.distill.losses import batch_loss, clip_losses, token_losses
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.student_init import unfold_head
from liteframe.distill.targets import TargetNormalizer, TargetSettings
from liteframe.files import write_atomically
from liteframe.models.student.weight_selection import initialize_student, select_from_student
from liteframe.models.teacher.base import Teacher
from liteframe.reduce.pooled_teacher import PooledTeacher
from liteframe.toyworld.questions import TEST_WORLD
from liteframe.toyworld.scenes import render, scene_for
from liteframe.training.ema import WeightAverage
from liteframe.training.guard import json_number
from liteframe.training.report import environment
from liteframe.training.schedule import OptimizerSettings, configure_optimizer

TEACHER = Path(__file__).parents[1] / "liteframe" / "toyworld" / "checkpoint"
FRAMES = 16


@dataclass(frozen=True)
class Setup:
    """What to run: channels of the larger and the small students, steps of a run, learning rates."""

    large: int = 64
    small: tuple[int, ...] = (32, 16)
    steps: int = 120
    rates: tuple[float, ...] = (2e-3, 2e-2, 0.2)
    seeds: tuple[int, ...] = (0, 1, 2)
    clips: int = 160
    held_out: int = 48
    batch: int = 8
    decay: float = 0.98


class Clips(NamedTuple):
    """Normalized video [N,T,3,H,W] and the teacher's pooled features [N,T/4,h,w,C]."""

    video: Tensor
    pooled: Tensor


class World(NamedTuple):
    """What all runs share."""

    teacher: Teacher
    train: Clips
    held_out: Clips
    target: TargetNormalizer


@dataclass(frozen=True)
class Arm:
    """One kind of run; clip_norm 0 does not clip gradients. The larger student itself has the start "larger"."""

    dim: int
    start: str
    rate: float
    clip_norm: float
    steps: int


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        lost: loss or gradients were not finite, or the final loss is above the bar, the larger of the loss at the start
            and 1, which is what emitting the mean of the targets costs.
        rose: after the first tenth of the run, the mean loss of ten steps was above that bar.
        gradient_norm: the largest before clipping.
        cosine: {"half", "half_ema", "end", "end_ema"}: held-out token cosine half-way and at the end; empty if the run
            did not get there.
    """

    arm: Arm
    seed: int
    lost: bool
    rose: bool
    first_loss: float
    highest_loss: float
    final_loss: float
    gradient_norm: float
    cosine: dict[str, float]


def config_of(dim: int, teacher: Teacher) -> LiteFrameConfig:
    """A toy student with heads of 16 channels and an MLP four times as wide, like the presets."""
    return LiteFrameConfig(
        dim=dim, depth=6, heads=dim // 16, patch_size=teacher.patch_size, image_size=64, teacher_dim=teacher.dim,
        downsample={1: (2, 2, 2), 2: (2, 1, 1)}, clip_frames=FRAMES, image_mean=teacher.image_mean,
        image_std=teacher.image_std, resize=teacher.resize,
    )  # fmt: skip


@torch.no_grad()
def make_world(setup: Setup) -> World:
    """Render the clips, run the teacher over them once, measure the statistics."""
    teacher = load_teacher(str(TEACHER))
    vision = PooledTeacher(teacher)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (teacher.image_mean, teacher.image_std))
    parts = []
    for world, count in ((0, setup.clips), (TEST_WORLD, setup.held_out)):
        videos, pooled = [], []
        for index in range(count):
            first = index % 4 * FRAMES  # a scene has 64 frames
            frames = torch.from_numpy(render(scene_for(world, index))[first : first + FRAMES].copy())
            video = (frames.permute(0, 3, 1, 2)[None] / 255 - mean) / std
            videos.append(video)
            pooled.append(vision(video).tokens)
        parts.append(Clips(torch.cat(videos), torch.cat(pooled)))
    measured = RunningStatistics(teacher.dim)
    measured.update(parts[0].pooled.flatten(0, -2))
    target = TargetNormalizer(teacher.dim, TargetSettings())
    target.fit(measured.freeze())
    return World(teacher, parts[0], parts[1], target)


def train(world: World, setup: Setup, arm: Arm, student: LiteFrameEncoder, seed: int) -> Outcome:
    """Train `student` in place; it emits raw features before and after. The seed draws the clips."""
    target, generator = world.target, torch.Generator().manual_seed(seed)
    unfold_head(student.head, target.standardizer)
    optimizer, schedule = adamw(student.train(), arm)
    average = WeightAverage(student, setup.decay)
    losses: list[float] = []
    norms: list[float] = []
    cosine: dict[str, float] = {}
    for step in range(1, arm.steps + 1):
        chosen = torch.randint(len(world.train.video), (setup.batch,), generator=generator)
        pooled = world.train.pooled[chosen]
        wanted = target(pooled, torch.ones(pooled.shape[:2], dtype=torch.bool))
        per_clip = clip_losses(token_losses(student(world.train.video[chosen]), wanted.values, "mse"), wanted.weight)
        loss = batch_loss(per_clip, setup.batch)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(student.parameters(), arm.clip_norm or math.inf).item())
        losses.append(loss.item())
        if not (math.isfinite(losses[-1]) and math.isfinite(norms[-1])):
            cosine.clear()
            break
        optimizer.step()
        schedule.step()
        average.update(student)
        if step in (arm.steps // 2, arm.steps):
            name = "end" if step == arm.steps else "half"
            cosine[name] = held_out_cosine(world, student)
            average.exchange(student)
            cosine[f"{name}_ema"] = held_out_cosine(world, student)
            average.exchange(student)
    target.standardizer.fold(student.head)
    means = [statistics.fmean(losses[i : i + 10]) for i in range(len(losses) // 10, max(1, len(losses) - 9))]
    bar = max(1.0, losses[0])
    lost = not cosine or means[-1] > bar
    return Outcome(
        arm, seed, lost, lost or max(means) > bar, losses[0], largest(losses), means[-1], largest(norms), cosine
    )


def adamw(student: LiteFrameEncoder, arm: Arm) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The recipe's optimizer and schedule."""
    built: dict[str, Any] = configure_optimizer(student, OptimizerSettings(lr=arm.rate), arm.steps)
    return built["optimizer"], built["lr_scheduler"]["scheduler"]


@torch.no_grad()
def held_out_cosine(world: World, student: LiteFrameEncoder) -> float:
    """Mean cosine between the student's tokens and the teacher's, in raw space."""
    metrics = HeldOutMetrics(world.teacher.dim, projected=False)
    for video, pooled in zip(world.held_out.video.split(16), world.held_out.pooled.split(16), strict=True):
        found = world.target.standardizer.inverse(student(video))
        metrics.update(found, pooled, torch.ones(pooled.shape[:2], dtype=torch.bool))
    return metrics.compute()["token_cosine"].item()


def from_teacher(world: World, dim: int) -> LiteFrameEncoder:
    """A student cut from the teacher."""
    student = LiteFrameEncoder(config_of(dim, world.teacher))
    initialize_student(student, world.teacher)
    return student


def arms(setup: Setup, dim: int) -> list[Arm]:
    """Kinds of runs of a small student; twice the steps is what the progressive one has behind it in all."""
    both = ("direct", "progressive")
    grid = [Arm(dim, start, rate, clip, setup.steps) for clip in (1.0, 0.0) for rate in setup.rates for start in both]
    return grid + [Arm(dim, "direct", rate, 1.0, 2 * setup.steps) for rate in setup.rates[:2]]


def measure(setup: Setup) -> dict[str, Any]:
    """All runs, as a record."""
    began, outcomes = time.process_time(), []
    world = make_world(setup)
    for seed in setup.seeds:
        large = from_teacher(world, setup.large)
        outcomes.append(train(world, setup, Arm(setup.large, "larger", setup.rates[0], 1.0, setup.steps), large, seed))
        for arm in (arm for dim in setup.small for arm in arms(setup, dim)):
            if arm.start == "progressive":
                student = select_from_student(large, config_of(arm.dim, world.teacher))
            else:
                student = from_teacher(world, arm.dim)
            outcomes.append(train(world, setup, arm, student, seed))
            print(f"{time.process_time() - began:5.0f} s  seed {seed}  {arm}", file=sys.stderr, flush=True)
    parameters = {dim: cost(config_of(dim, world.teacher)).params for dim in (setup.large, *setup.small)}
    return {
        **environment(torch.device("cpu")),
        "cpu_seconds": round(time.process_time() - began),
        "setup": asdict(setup),
        "parameters": parameters,
        "runs": [as_row(outcome) for outcome in outcomes],
    }


def as_row(outcome: Outcome) -> dict[str, Any]:
    """Plain JSON; "nan" and "inf" are words there."""
    return {name: json_number(value) if isinstance(value, float) else value for name, value in asdict(outcome).items()}


def table(record: dict[str, Any]) -> str:
    """The record as markdown."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in record["runs"]:
        groups.setdefault(tuple(row["arm"].values()), []).append(row)
    lines = []
    for (dim, start, rate, clip, steps), rows in groups.items():
        count = len(rows)
        cells = [
            f"{dim} ({record['parameters'][dim]:,})", start, f"{steps}", f"{rate:g}", f"{clip:g}" if clip else "none",
            f"{sum(row['lost'] for row in rows)} of {count}", f"{sum(row['rose'] for row in rows)} of {count}",
            f"{largest([float(row['gradient_norm']) for row in rows]):.3g}",
            *(spread([row["cosine"].get(name) for row in rows]) for name in ("end", "end_ema", "half", "half_ema")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    setup = record["setup"]
    heading = (
        "channels (parameters)", "start", "steps", "learning rate", "gradient clipping", "lost", "rose",
        "largest gradient norm", "cosine", "with EMA", "half-way", "with EMA",
    )  # fmt: skip
    return "\n".join(
        [
            "# Small students on toyworld\n",
            f"{record['date']}, {record['platform']}, {record['device']}, {record['threads']} thread, "
            f"torch {record['versions']['torch']}, {record['cpu_seconds']} s of CPU time: "
            f"`python benchmarks/small_students.py`. {len(setup['seeds'])} seeds (order of the clips), "
            f"{setup['clips']} clips of {FRAMES} frames, batches of {setup['batch']}, "
            f"{setup['held_out']} clips held out, EMA decay {setup['decay']} with ramp.\n",
            "*lost*: not finite, or the final loss (last ten steps) is above both its start and 1, which is what "
            "emitting the mean of the targets costs. *rose*: it was so at some time after the first tenth of the run. "
            "*cosine*: between the student's held-out tokens and the teacher's, mean ± std over seeds.\n",
            "| " + " | ".join(heading) + " |",
            "|" + " --- |" * len(heading),
            *lines,
            "",
        ]
    )


def largest(values: list[float]) -> float:
    """Maximum; nan if one of them is."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation; a dash if some run has none."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return "-"
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.fmean(found):.3f} ± {deviation:.3f}"


def main(folder: Path, setup: Setup) -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    record = measure(setup)
    write_atomically(folder / "small_students.json", (json.dumps(record, indent=1) + "\n").encode())
    write_atomically(folder / "small_students.md", table(record).encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of the two files")
    main(parser.parse_args().output, Setup())
