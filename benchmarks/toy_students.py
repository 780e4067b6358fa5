"""Students on toyworld from a teacher's stored dense features, and what they answer: for several benchmarks.

Shapes: N clips, T frames of HxW pixels, (h,w) patch grid, C teacher channels.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from claims_plan import Setup, Variant
from torch import Tensor, nn
from typing_extensions import override

from liteframe import LiteFrameConfig, LiteFrameEncoder
from liteframe.data.preprocess import FrameTransform
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
from liteframe.reduce.pooled_teacher import Pooled, PooledTeacher
from liteframe.texts import read_yaml
from liteframe.toyworld.questions import TEST_WORLD, one_of_each
from liteframe.toyworld.scenes import FPS, SIZE, render, scene_for
from liteframe.training.configs import packaged_configs
from liteframe.training.schedule import OptimizerSettings, configure_optimizer

CLIP = 16
UNSEEN = TEST_WORLD + 500  # worlds that neither the demo nor any tuning has used
TOY = read_yaml(packaged_configs()["ctd/toy"])["model"]
SQUARE = (SIZE, SIZE)


class Clips(NamedTuple):
    """Frames of one size uint8 [N,T,3,H,W], and what the teacher sees in them, bfloat16.

    Attributes:
        frames: of each clip.
        patches: [N,T,h,w,C]; T pairs for a teacher of pairs.
        saliency: the cls token of each frame [N,T,C], or logits [N,T,h,w] of a teacher without one.
    """

    frames: Tensor
    patches: Tensor
    saliency: Tensor


class Film(NamedTuple):
    """All frames of a scene, uint8 [T,H,W,3], and a question of each type."""

    frames: np.ndarray
    questions: list[Question]


class Material(NamedTuple):
    """What students of a teacher learn from and are compared on: clips of each size of frames."""

    teacher: Teacher
    train: Sequence[Clips]
    held_out: Sequence[Clips]


@torch.no_grad()
def clips_of(
    world: int, scenes: int, teacher: Teacher, each: int, config: LiteFrameConfig, size: tuple[int, int] = SQUARE
) -> Clips:
    """`each` clips of 16 frames of every scene, in turn from its four quarters, with the teacher's features.

    Args:
        world: of the scenes.
        scenes: number of them.
        teacher: sees them.
        each: clips of a scene.
        config: of a student, in whose format frames are.
        size: height and width of the films.
    """
    parts = []
    form = FrameTransform(config.image_size, config.image_mean, config.image_std, config.resize, config.pixel_multiple)
    for index in range(scenes):
        film = form.resized(render(scene_for(world, index, size)))  # [64,3,H,W]
        frames = torch.stack([film[CLIP * ((index + n) % 4) :][:CLIP] for n in range(each)])  # [each,T,3,H,W]
        seen = teacher(normalized(frames, config, torch.float32))
        saliency = seen.logits if seen.query is None else seen.query
        assert saliency is not None
        parts.append(Clips(frames, seen.patches.bfloat16(), saliency.bfloat16()))
    return Clips(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def films_of(world: int, scenes: int, size: tuple[int, int] = SQUARE) -> list[Film]:
    """Scenes of one of the worlds that are asked about, of a height and width in pixels."""
    films = []
    for index in range(scenes):
        scene = scene_for(UNSEEN + world, index, size)
        asked = one_of_each(scene, np.random.default_rng([UNSEEN + world, index, 1]))
        name = f"{world}-{index}"
        questions = [Question(f"{name}-{q.kind}", name, q.text, q.answer, groups={"type": q.kind}) for q in asked]
        films.append(Film(render(scene), questions))
    return films


def question_text(question: Question) -> str:
    """The words that are put to the model."""
    return ask_text(BENCHMARK.prompt, question, BENCHMARK.option_format)


def asked(system: System, film: Film, frames: int) -> str:
    """A 1 or a 0 for each question about so many frames of a film, evenly spread."""
    places = [(2 * n + 1) * len(film.frames) // (2 * frames) for n in range(frames)]
    session = system.look(film.frames[places], [place / FPS for place in places])
    replies = [session.ask(question_text(question), max_new_tokens=3).text for question in film.questions]
    pairs = zip(film.questions, replies, strict=True)
    return "".join("01"[BENCHMARK.reply_is_right(question, reply)] for question, reply in pairs)


def student_config(teacher: Teacher, fields: dict[str, Any]) -> LiteFrameConfig:
    """The student of toy.yaml with other fields, which sees frames as its teacher does."""
    return with_preprocessing(LiteFrameConfig(**{**TOY["student"], **fields}), teacher)


def distil(material: Material, setup: Setup, variant: Variant, seed: int) -> tuple[LiteFrameEncoder, float]:
    """A student with its own optimizer, schedule and clipping of toy.yaml, and its cosine on held-out clips.

    Steps take clips of each size in turn.
    """
    teacher = material.teacher
    torch.manual_seed(seed)
    config = student_config(teacher, variant.student)
    settings = TargetSettings(**variant.target)
    objective = objectives[variant.objective](teacher.dim, settings, "mse", config.compression)
    pooled = Targets(PooledTeacher(teacher, objective.pooling), variant.saliency, config.clip_frames)
    running = RunningStatistics(teacher.dim)
    for clips in material.train:
        some = slice(setup.statistics_clips // len(material.train))
        running.update(pooled(clips, some).tokens.flatten(0, -2))
    objective.fit(running.freeze())
    student, _ = build_student(config, teacher, variant.init, None)  # type: ignore[arg-type]
    student.train()
    if variant.init == "weight_selection":
        unfold_head(student.head, objective.normalizer.standardizer)
    trained = nn.ModuleList([student, *objective.modules().values()])
    built = configure_optimizer(trained, OptimizerSettings(**TOY["optimizer"]), setup.steps)
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    generator = torch.Generator().manual_seed(seed)
    for step in range(setup.steps):
        clips = material.train[step % len(material.train)]
        chosen = torch.randint(len(clips.frames), (setup.batch,), generator=generator)
        target = pooled(clips, chosen)
        video = pooled.cut(normalized(clips.frames[chosen], config, torch.float32))
        losses = objective.loss(student(video), objective.targets(target.tokens, target.slots))
        optimizer.zero_grad()
        batch_loss(losses.per_clip, len(video)).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    cosine = held_out_cosine(material.held_out, student.eval(), objective, pooled)
    copy.deepcopy(objective.normalizer.standardizer).fold(student.head)
    return student, cosine


class PooledByNorm(PooledTeacher):
    """WAP whose weights within a window are as the lengths of features."""

    @override
    def pool(self, features: TeacherFeatures, frame_mask: Tensor | None = None, *, log_weights: bool = False) -> Pooled:
        return super().pool(by_norm(features), frame_mask, log_weights=log_weights)


def by_norm(features: TeacherFeatures) -> TeacherFeatures:
    """Features whose saliency is their length."""
    return TeacherFeatures(features.patches, None, features.patches.float().norm(dim=-1).log())


@dataclasses.dataclass(frozen=True)
class Targets:
    """The teacher's features of clips, pooled, in clips of a student's length.

    Attributes:
        teacher: pools.
        saliency: as of Variant.
        clip_frames: of the student.
    """

    teacher: PooledTeacher
    saliency: str
    clip_frames: int

    def __call__(self, clips: Clips, chosen: Tensor | slice) -> Pooled:
        """Of the clips chosen."""
        given = self.cut(clips.saliency[chosen].float())
        features = TeacherFeatures(self.cut(clips.patches[chosen].float()), None, None)
        if self.saliency == "own":
            features = features._replace(**{"query" if given.ndim == 3 else "logits": given})
        return self.teacher.pool(by_norm(features) if self.saliency == "norm" else features)

    def cut(self, x: Tensor) -> Tensor:
        """Of clips [B,T,...], or of their pairs of frames -> the same of the student's clips, [B*n,T/n,...]."""
        return x.unflatten(1, (CLIP // self.clip_frames, -1)).flatten(0, 1)


@torch.no_grad()
def held_out_cosine(
    held_out: Sequence[Clips], student: LiteFrameEncoder, objective: CompressedTokens, pooled: Targets
) -> float:
    """Mean cosine of what the student says of the teacher's features, in raw space."""
    metrics = HeldOutMetrics(student.config.teacher_dim, projected=False)
    for clips in held_out:
        for first in range(0, len(clips.frames), 20):
            part = slice(first, first + 20)
            target = pooled(clips, part)
            video = pooled.cut(normalized(clips.frames[part], student.config, torch.float32))
            metrics.update(objective.raw(student(video)), target.tokens, target.slots)
    return metrics.compute()["token_cosine"].item()
