"""One elastic student against the student of 16x, on toyworld: cosine in 16x, and what each mode costs and answers.

python benchmarks/elastic.py     # writes elastic.{json,md} beside this file; half an hour of one core

A student of 16x (configs/ctd/toy.yaml, clips and questions of claims.py) learns for 600 steps. Then it goes on for 60
or 200 steps with the settings of configs/ctd/toy_elastic.yaml: alone, or made elastic with all modes in each step, on
the same clips in the same order. The shipped tiny InternVL reads every mode without any alignment and is asked the same
300 questions about 60 videos of three worlds on which nothing was tuned, at 64 frames and at 16 tokens. Three seeds.
What is done is a line of WORK/cells.jsonl, and the same command goes on behind it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from claims import resume
from claims_cells import Workshop
from claims_plan import SEEDS, WHOLE
from claims_plan import Setup as Worlds
from elastic_report import OWN, TOKENS, report, tokens_a_frame
from torch import Tensor, nn
from toy_students import TOY, Clips, asked, question_text, student_config

from liteframe import LiteFrameConfig, LiteFrameEncoder
from liteframe.compare.times import Timed, time_points
from liteframe.distill.losses import batch_loss
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.objectives import CompressedTokens, make_objective
from liteframe.distill.statistics import ChannelStatistics, RunningStatistics
from liteframe.distill.student_init import build_student, unfold_head
from liteframe.distill.targets import TargetSettings
from liteframe.evaluate.asking import System
from liteframe.files import write_atomically, write_json
from liteframe.machine import processor_name
from liteframe.models.student.elastic import upgrade
from liteframe.models.student.inference import normalized
from liteframe.models.teacher.base import TeacherFeatures
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher
from liteframe.texts import read_yaml
from liteframe.training.configs import packaged_configs
from liteframe.training.report import environment
from liteframe.training.schedule import OptimizerSettings, configure_optimizer

ELASTIC = read_yaml(packaged_configs()["ctd/toy_elastic"])["model"]


@dataclass(frozen=True)
class Setup:
    """Steps of the student of 16x, steps that it goes on for, seeds, and the worlds of claims.py."""

    steps: int = 600
    more: tuple[int, ...] = (60, 200)
    seeds: tuple[int, ...] = SEEDS
    worlds: Worlds = field(default_factory=Worlds)


class Bench(Workshop):
    """Students of 16x and elastic ones, on the clips and questions of claims.py."""

    @cached_property
    def plain(self) -> LiteFrameConfig:
        """The shape of the student of 16x."""
        return student_config(self.teacher, {})

    @cached_property
    def elastic(self) -> LiteFrameConfig:
        """The shape of the elastic one."""
        return student_config(self.teacher, ELASTIC["student"])

    @property
    def clips(self) -> Clips:
        """What students learn from."""
        return self.material.train[0]

    @cached_property
    def statistics(self) -> ChannelStatistics:
        """Of 16x, by which the targets of all modes are standardized."""
        running = RunningStatistics(self.teacher.dim)
        first = slice(self.setup.statistics_clips)
        running.update(self.of_teacher(self.objective(self.plain), self.clips, first).tokens.flatten(0, -2))
        return running.freeze()

    def objective(self, shape: LiteFrameConfig) -> CompressedTokens:
        """CTD for a student of this shape."""
        return make_objective("ctd", self.teacher.dim, TargetSettings(), "mse", shape)

    def of_teacher(self, objective: CompressedTokens, clips: Clips, chosen: Tensor | slice) -> Pooled:
        """The teacher's features of clips, as an objective takes them."""
        features = TeacherFeatures(clips.patches[chosen].float(), clips.saliency[chosen].float(), None)
        teacher = PooledTeacher(self.teacher, objective.pooling)
        return teacher.pool(features, log_weights=objective.needs_log_weights)

    def trained(
        self, student: LiteFrameEncoder, steps: int, seed: int, optimizer: dict[str, Any]
    ) -> tuple[LiteFrameEncoder, dict[str, float]]:
        """The student after so many steps, its head in raw space as before, and its held-out cosine by mode."""
        objective = self.objective(student.config)
        objective.fit(self.statistics)
        unfold_head(student.train().head, objective.normalizer.standardizer)
        generator = torch.Generator().manual_seed(seed)
        if steps:
            built = configure_optimizer(nn.ModuleList([student]), OptimizerSettings(**optimizer), steps)
            update, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
        for _ in range(steps):
            chosen = torch.randint(len(self.clips.frames), (self.setup.batch,), generator=generator)
            target = self.of_teacher(objective, self.clips, chosen)
            tokens = objective.student_tokens(student, self.video(self.clips, chosen))
            losses = objective.loss(tokens, objective.targets(target.tokens, target.slots, target.log_weights))
            update.zero_grad()
            batch_loss(losses.per_clip, len(chosen)).backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            update.step()
            schedule.step()
        cosines = self.held_out_cosines(student.eval(), objective)
        copy.deepcopy(objective.normalizer.standardizer).fold(student.head)
        return student, cosines

    def video(self, clips: Clips, chosen: Tensor | slice) -> Tensor:
        """Normalized frames [B,T,3,H,W] of clips."""
        return normalized(clips.frames[chosen], self.plain, torch.float32)

    @torch.no_grad()
    def held_out_cosines(self, student: LiteFrameEncoder, objective: CompressedTokens) -> dict[str, float]:
        """Mean cosine to the teacher's pooled features in raw space, by mode."""
        metrics: dict[str, HeldOutMetrics] = {}
        for clips in self.material.held_out:
            every = slice(None)
            tokens = objective.student_tokens(student, self.video(clips, every))
            for name, (raw, own) in objective.compared(tokens, self.of_teacher(objective, clips, every)).items():
                metrics.setdefault(name, HeldOutMetrics(self.teacher.dim, projected=False))
                metrics[name].update(raw, own.tokens, own.slots)
        return {name.removeprefix("_") or OWN: one.compute()["token_cosine"].item() for name, one in metrics.items()}

    def system(self, student: LiteFrameEncoder) -> System:
        """The tiny InternVL with this student."""
        model, processor = self.vlm
        attached = attach_encoder(model, student).eval()
        return System.of(attached, processor_for(processor, attached.config))

    def answers(self, student: LiteFrameEncoder, kinds: Sequence[str]) -> dict[str, dict[str, str]]:
        """By mode, a 1 or a 0 for each question: "frames", at 64 of them, and "tokens", at the frames of 16."""
        students = {m: student.extract(m) for m in student.config.modes} or {OWN: student}
        films, found = [film for world in self.films for film in world], dict[str, dict[str, str]]()
        for mode, one in students.items():
            system, frames = self.system(one), {"frames": WHOLE, "tokens": int(TOKENS / tokens_a_frame(one.config))}
            found[mode] = {kind: "".join(asked(system, film, frames[kind]) for film in films) for kind in kinds}
        return found

    def times(self) -> dict[str, Any]:
        """Milliseconds from the pixels of 64 frames to the first token, of the dense model and each mode, in turns."""
        elastic, film = LiteFrameEncoder(self.elastic).eval(), self.films[0][0]
        systems = {mode: self.system(elastic.extract(mode)) for mode in self.elastic.modes}
        systems["none"] = System.of(*self.vlm)
        text = question_text(film.questions[0])
        points = {name: Timed(system, film.frames, text) for name, system in systems.items()}
        times, failed = time_points(points, self.setup.timing_runs)
        return {"times": times, "failed": failed}


@dataclass(frozen=True)
class Cell:
    """A student after so many steps or further steps; arm "times" is none, but what each mode takes."""

    arm: str
    steps: int
    seed: int

    def key(self) -> dict[str, Any]:
        """As a row has it."""
        return asdict(self)


def plan(setup: Setup) -> list[Cell]:
    """All cells: a student of 16x, it and an elastic one after further steps, seed by seed; and times."""
    arms = [("single", setup.steps), ("elastic", 0)]
    arms += [(arm, steps) for steps in setup.more for arm in ("single, on", "elastic")]
    return [Cell("times", 0, 0), *(Cell(arm, steps, seed) for seed in setup.seeds for arm, steps in arms)]


def done(bench: Bench, setup: Setup, arm: str, steps: int, seed: int) -> dict[str, Any]:
    """What came of a cell: cosines by mode, and answers after the most steps and, of the upgrade alone, before any."""
    if arm == "times":
        return bench.times()
    folder = bench.work / f"single-{seed}"
    torch.manual_seed(seed)
    if arm == "single":
        start, _ = build_student(bench.plain, bench.teacher, "weight_selection", None)
        student, cosines = bench.trained(start, steps, seed, TOY["optimizer"])
        student.save_pretrained(folder)
    else:
        start = LiteFrameEncoder.from_pretrained(folder)
        start = upgrade(start, bench.elastic.modes) if arm == "elastic" else start
        student, cosines = bench.trained(start, steps, seed + 100, ELASTIC["optimizer"])
    kinds = ["frames", "tokens"] if arm != "single" and steps == setup.more[-1] else ["frames"] if not steps else []
    return {"cosine": cosines, "right": bench.answers(student, kinds)}


def main(work: Path, output: Path, setup: Setup) -> None:
    """Do what is missing, and write what is there after each seed; errors as of `resume`."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, setup.worlds)
    head = {"setup": asdict(setup) | {"more": list(setup.more), "seeds": list(setup.seeds)}}
    for cells in resume(work, head, plan(setup), lambda cell: done(bench, setup, **cell.key()), None):
        last = cells[-1]["cell"]
        if (last["arm"], last["steps"]) == ("elastic", setup.more[-1]):  # of a seed
            write(cells, head, bench.elastic, output)


def write(cells: list[dict[str, Any]], head: dict[str, Any], shape: LiteFrameConfig, output: Path) -> None:
    """The record, and the page from the seeds that are whole."""
    where = {name: value for name, value in environment(torch.device("cpu")).items() if name != "command"}
    record = {**where, "processor": processor_name(), **head, "cells": cells}
    write_json(output / "elastic.json", record)
    write_atomically(output / "elastic.md", report(record, shape).encode())


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/elastic"), help="features, students, finished cells")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder of elastic.{json,md}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = read_arguments()
    main(given.work.resolve(), given.output, Setup())
