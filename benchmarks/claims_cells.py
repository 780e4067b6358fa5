"""The doing of benchmarks/claims.py: students, answers and times of the tiny Video LLM, whole and reduced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from claims_plan import DENSE_FRAMES, OTHER_RATIOS, RATIO, SEEDS, WHOLE, Setup, Variant
from safetensors.torch import load_file, save_file
from toy_students import (
    UNSEEN,
    Clips,
    Film,
    Material,
    PooledByNorm,
    asked,
    clips_of,
    distil,
    films_of,
    question_text,
    student_config,
)

from liteframe import LiteFrameEncoder, load_teacher, load_video_llm, reducers
from liteframe.answer.reduced_encoder import ReducedEncoder
from liteframe.compare.systems import RememberingTower
from liteframe.compare.times import Timed, time_points
from liteframe.evaluate.asking import System
from liteframe.models.teacher.base import Teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.reduce.wap import WeightedAverage
from liteframe.toyworld.model import CHECKPOINT


class Workshop:
    """What all cells share; made when it is first needed, and the teacher's features kept in a file.

    Args:
        work: folder for it.
        setup: how much of it.
        source: folder of the tiny Video LLM.
    """

    def __init__(self, work: Path, setup: Setup, source: Path = CHECKPOINT):
        self.work, self.setup, self.source = work, setup, source

    @cached_property
    def teacher(self) -> Teacher:
        """The tower of the tiny Video LLM."""
        return load_teacher(str(self.source))

    @cached_property
    def vlm(self) -> tuple[Any, Any]:
        """The tiny Video LLM and its processor."""
        return load_video_llm(self.source)

    @cached_property
    def films(self) -> list[list[Film]]:
        """Those of each world."""
        return [films_of(world, self.setup.test_scenes) for world in SEEDS]

    @cached_property
    def material(self) -> Material:
        """Four clips a scene of world 0, from their file, and one a scene that is asked about."""
        file = self.work / f"features_{self.setup.scenes}.safetensors"
        config = student_config(self.teacher, {})
        if not file.is_file():
            made = clips_of(0, self.setup.scenes, self.teacher, 4, config)
            save_file(made._asdict(), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        parts = [clips_of(UNSEEN + world, self.setup.test_scenes, self.teacher, 1, config) for world in SEEDS]
        return Material(self.teacher, [Clips(**load_file(file))], parts)

    def student(self, variant: Variant, seed: int, folder: Path | None = None) -> dict[str, Any]:
        """Train one and ask it; `right` by frames has a 1 or a 0 a question, the three worlds one after the other.

        Args:
            variant: what it is.
            seed: of weights and order.
            folder: where it is saved; None does not.
        """
        student, cosine = distil(self.material, self.setup, variant, seed)
        if folder is not None:
            student.save_pretrained(folder)
        model, processor = self.vlm
        attached = attach_encoder(model, student).eval()
        right = self.asked(System.of(attached, processor_for(processor, attached.config)), variant.frames)
        return {"cosine": cosine, "parameters": sum(p.numel() for p in student.parameters()), "right": right}

    def asked(self, system: System, frames: Sequence[int]) -> dict[str, str]:
        """A 1 or a 0 for each question of all worlds, by number of frames."""
        films = [film for world in self.films for film in world]
        return {str(count): "".join(asked(system, film, count) for film in films) for count in frames}

    def pooled(self, saliency: str) -> dict[str, Any]:
        """Ask about the teacher's tokens after WAP by one kind of saliency."""
        (model, processor), by_norm = self.vlm, saliency == "norm"
        teacher = load_teacher(str(self.source), saliency=None if by_norm else saliency)
        config = student_config(teacher, {})  # describes the grid
        pooled = PooledByNorm(teacher) if by_norm else PooledTeacher(teacher)
        attached = attach_encoder(model, PooledEncoder(pooled), config=config).eval()
        return {"right": self.asked(System.of(attached, processor_for(processor, attached.config)), (WHOLE,))}

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
        config = student_config(self.teacher, {})
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
