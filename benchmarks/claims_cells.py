"""The doing of benchmarks/claims.py: clips with the teacher's dense features, students, answers, times.

Shapes: N clips, T frames of HxW pixels, (h,w) patch grid, C teacher channels.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from claims_plan import DENSE_FRAMES, OTHER_RATIOS, RATIO, SEEDS, WHOLE, Setup, Variant
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from liteframe import LiteFrameConfig, LiteFrameEncoder, load_teacher, load_video_llm, reducers
from liteframe.answer.reduced_encoder import ReducedEncoder
from liteframe.compare.systems import RememberingTower
from liteframe.compare.times import Timed, time_points
from liteframe.demo.report import BENCHMARK
from liteframe.distill.losses import batch_loss
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.objectives import CompressedTokens, objectives
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.student_init import build_student, unfold_head, with_preprocessing
from liteframe.distill.targets import TargetSettings
from liteframe.evaluate.asking import System
from liteframe.evaluate.benchmarks.base import Question, ask_text
from liteframe.models.student.inference import normalized
from liteframe.models.teacher.base import Teacher, TeacherFeatures
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.reduce.pooled_teacher import Pooled, PooledEncoder, PooledTeacher
from liteframe.reduce.wap import WeightedAverage
from liteframe.texts import read_yaml
from liteframe.toyworld.model import CHECKPOINT
from liteframe.toyworld.questions import TEST_WORLD, one_of_each
from liteframe.toyworld.scenes import render, scene_for
from liteframe.training.configs import packaged_configs
from liteframe.training.schedule import OptimizerSettings, configure_optimizer

CLIP = 16
UNSEEN = TEST_WORLD + 500  # worlds that neither the demo nor any tuning has used
TOY = read_yaml(packaged_configs()["ctd/toy"])["model"]


class Clips(NamedTuple):
    """Frames uint8 [N,T,3,H,W], and what the teacher sees in them, bfloat16: patches [N,T,h,w,C], query [N,T,C]."""

    frames: Tensor
    patches: Tensor
    query: Tensor


class Film(NamedTuple):
    """All frames of a scene, uint8 [T,H,W,3], and a question of each type."""

    frames: np.ndarray
    questions: list[Question]


def clips_of(world: int, scenes: int, teacher: Teacher, each: int) -> Clips:
    """`each` clips of 16 frames of every scene, in turn from its four quarters, with the teacher's features."""
    parts = []
    for index in range(scenes):
        film = torch.from_numpy(render(scene_for(world, index))).permute(0, 3, 1, 2)  # [64,3,H,W]
        frames = torch.stack([film[CLIP * ((index + n) % 4) :][:CLIP] for n in range(each)])  # [each,T,3,H,W]
        seen = teacher(normalized(frames, with_preprocessing(LiteFrameConfig(), teacher), torch.float32))
        assert seen.query is not None
        parts.append(Clips(frames, seen.patches.bfloat16(), seen.query.bfloat16()))
    return Clips(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def films_of(world: int, scenes: int) -> list[Film]:
    """Scenes of one of the worlds that are asked about."""
    films = []
    for index in range(scenes):
        scene = scene_for(UNSEEN + world, index)
        asked = one_of_each(scene, np.random.default_rng([UNSEEN + world, index, 1]))
        name = f"{world}-{index}"
        questions = [Question(f"{name}-{q.kind}", name, q.text, q.answer, groups={"type": q.kind}) for q in asked]
        films.append(Film(render(scene), questions))
    return films


class Workshop:
    """What all cells share; made when it is first needed, and the teacher's features kept in a file.

    Args:
        work: folder for it.
        setup: how much of it.
    """

    def __init__(self, work: Path, setup: Setup):
        self.work, self.setup = work, setup

    @cached_property
    def teacher(self) -> Teacher:
        """The tower of the tiny InternVL."""
        return load_teacher(str(CHECKPOINT))

    @cached_property
    def vlm(self) -> tuple[Any, Any]:
        """The tiny InternVL and its processor."""
        return load_video_llm(CHECKPOINT)

    @cached_property
    def films(self) -> list[list[Film]]:
        """Those of each world."""
        return [films_of(world, self.setup.test_scenes) for world in SEEDS]

    @cached_property
    def train_clips(self) -> Clips:
        """Four a scene of world 0, from their file."""
        file = self.work / f"clips_{self.setup.scenes}.safetensors"
        if not file.is_file():
            made = clips_of(0, self.setup.scenes, self.teacher, each=4)
            save_file(made._asdict(), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        return Clips(**load_file(file))

    @cached_property
    def held_out(self) -> Clips:
        """One a scene that is asked about."""
        parts = [clips_of(UNSEEN + world, self.setup.test_scenes, self.teacher, each=1) for world in SEEDS]
        return Clips(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def student(self, variant: Variant, seed: int) -> dict[str, Any]:
        """Train one and ask it; `right` by frames has a 1 or a 0 a question, the three worlds one after the other."""
        student, cosine = distil(self, variant, seed)
        model, processor = self.vlm
        attached = attach_encoder(model, student).eval()
        system = System.of(attached, processor_for(processor, attached.config))
        films = [film for world in self.films for film in world]
        right = {str(frames): "".join(asked(system, film, frames) for film in films) for frames in variant.frames}
        return {"cosine": cosine, "parameters": sum(p.numel() for p in student.parameters()), "right": right}

    def pooled(self, saliency: str) -> dict[str, Any]:
        """Ask about the teacher's tokens after WAP by one kind of saliency."""
        teacher, (model, processor) = load_teacher(str(CHECKPOINT), saliency=saliency), self.vlm
        config = with_preprocessing(LiteFrameConfig(**TOY["student"]), teacher)  # describes the grid
        attached = attach_encoder(model, PooledEncoder(PooledTeacher(teacher)), config=config).eval()
        system = System.of(attached, processor_for(processor, attached.config))
        films = [film for world in self.films for film in world]
        return {"right": {str(WHOLE): "".join(asked(system, film, WHOLE) for film in films)}}

    def reduced(self, world: int) -> dict[str, Any]:
        """Ask the tiny InternVL with every reducer about one world, and densely at several numbers of frames."""
        model, processor = self.vlm
        dense = System.of(model, processor)
        tower, right, failed = RememberingTower(model), dict[str, str](), dict[str, str]()
        for film in self.films[world]:
            for frames in DENSE_FRAMES:
                name = f"none@{frames}"
                right[name] = right.get(name, "") + asked(dense, film, frames)
            for name, encoder in self.reduced_encoders(tower).items():
                if name in failed:
                    continue
                try:
                    right[name] = right.get(name, "") + asked(System(model, processor, encoder), film, WHOLE)
                except ValueError as error:
                    failed[name] = " ".join(str(error).split())
                    right.pop(name, None)
        return {"right": right, "failed": failed}

    def reduced_encoders(self, tower: Any) -> dict[str, ReducedEncoder]:
        """Every reducer at 1/16, some at other ratios, and WAP over windows of a frame, by "name@ratio"."""
        dense = System.of(*self.vlm).encoder
        pairs = [(name, ratio) for name in reducers for ratio in (RATIO, *OTHER_RATIOS.get(name, ()))]
        made = {f"{name}@{ratio:g}": ReducedEncoder(dense, reducers[name], ratio, tower) for name, ratio in pairs}
        in_frame = WeightedAverage(window=(1, 4, 4))
        return made | {f"wap in a frame@{RATIO:g}": ReducedEncoder(dense, in_frame, RATIO, tower)}

    def times(self) -> dict[str, Any]:
        """Milliseconds of each stage of the dense model, of every reducer at 1/16, and with a student, in turns."""
        model, processor = self.vlm
        config = with_preprocessing(LiteFrameConfig(**TOY["student"]), self.teacher)
        attached = attach_encoder(model, LiteFrameEncoder(config).eval()).eval()
        systems = {"student": System.of(attached, processor_for(processor, attached.config))}
        systems["none"] = System.of(model, processor)
        for name, encoder in self.reduced_encoders(None).items():
            if name.endswith(f"@{RATIO:g}"):
                systems[name] = System(model, processor, encoder)
        film = self.films[0][0]
        text = question_text(film.questions[0])
        points = {name: Timed(system, film.frames, text) for name, system in systems.items()}
        times, failed = time_points(points, self.setup.timing_runs)
        return {"times": times, "failed": failed}


def question_text(question: Question) -> str:
    """The words that are put to the model."""
    return ask_text(BENCHMARK.prompt, question, BENCHMARK.option_format)


def asked(system: System, film: Film, frames: int) -> str:
    """A 1 or a 0 for each question about so many frames of a film, evenly spread."""
    places = [(2 * n + 1) * len(film.frames) // (2 * frames) for n in range(frames)]
    session = system.look(film.frames[places])
    replies = [session.ask(question_text(question), max_new_tokens=3).text for question in film.questions]
    pairs = zip(film.questions, replies, strict=True)
    return "".join("01"[BENCHMARK.reply_is_right(question, reply)] for question, reply in pairs)


def distil(shop: Workshop, variant: Variant, seed: int) -> tuple[LiteFrameEncoder, float]:
    """A student with its own optimizer, schedule and clipping of toy.yaml, and its cosine on held-out clips."""
    teacher, setup = shop.teacher, shop.setup
    torch.manual_seed(seed)
    config = with_preprocessing(LiteFrameConfig(**{**TOY["student"], **variant.student}), teacher)
    settings = TargetSettings(**variant.target)
    objective = objectives[variant.objective](teacher.dim, settings, "mse", config.compression)
    pooled = Targets(PooledTeacher(teacher, objective.pooling), variant.weighed, config.clip_frames)
    running = RunningStatistics(teacher.dim)
    running.update(pooled(shop.train_clips, slice(setup.statistics_clips)).tokens.flatten(0, -2))
    objective.fit(running.freeze())
    student, _ = build_student(config, teacher, variant.init, None)  # type: ignore[arg-type]
    student.train()
    if variant.init == "weight_selection":
        unfold_head(student.head, objective.normalizer.standardizer)
    trained = nn.ModuleList([student, *objective.modules().values()])
    built = configure_optimizer(trained, OptimizerSettings(**TOY["optimizer"]), setup.steps)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    generator = torch.Generator().manual_seed(seed)
    for _ in range(setup.steps):
        chosen = torch.randint(len(shop.train_clips.frames), (setup.batch,), generator=generator)
        target = pooled(shop.train_clips, chosen)
        video = pooled.cut(normalized(shop.train_clips.frames[chosen], config, torch.float32))
        losses = objective.loss(student(video), objective.targets(target.tokens, target.slots))
        optimizer.zero_grad()
        batch_loss(losses.per_clip, len(video)).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    cosine = held_out_cosine(shop.held_out, student.eval(), objective, pooled)
    copy.deepcopy(objective.normalizer.standardizer).fold(student.head)
    return student, cosine


@dataclasses.dataclass(frozen=True)
class Targets:
    """The teacher's features of clips, pooled, in clips of a student's length.

    Attributes:
        teacher: pools.
        weighed: by the product with the cls token; else plain means.
        clip_frames: of the student.
    """

    teacher: PooledTeacher
    weighed: bool
    clip_frames: int

    def __call__(self, clips: Clips, chosen: Tensor | slice) -> Pooled:
        """Of the clips chosen."""
        query = self.cut(clips.query[chosen].float()) if self.weighed else None
        return self.teacher.pool(TeacherFeatures(self.cut(clips.patches[chosen].float()), query, None))

    def cut(self, x: Tensor) -> Tensor:
        """[B,T,...] -> [B*T/clip_frames,clip_frames,...]."""
        return x.unflatten(1, (-1, self.clip_frames)).flatten(0, 1)


@torch.no_grad()
def held_out_cosine(clips: Clips, student: LiteFrameEncoder, objective: CompressedTokens, pooled: Targets) -> float:
    """Mean cosine of what the student says of the teacher's features, in raw space."""
    metrics = HeldOutMetrics(student.config.teacher_dim, projected=False)
    for first in range(0, len(clips.frames), 20):
        part = slice(first, first + 20)
        target = pooled(clips, part)
        video = pooled.cut(normalized(clips.frames[part], student.config, torch.float32))
        metrics.update(objective.raw(student(video)), target.tokens, target.slots)
    return metrics.compute()["token_cosine"].item()
