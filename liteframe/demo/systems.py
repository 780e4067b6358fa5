"""The Video LLMs that the demo compares, and how each is scored and timed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from liteframe.compare.times import Timed, time_points
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames
from liteframe.demo.report import BENCHMARK, CTD, LMA, POOLED, TEACHER, UNTRAINED, SystemResult
from liteframe.evaluate.asking import Asking, System, ask_all
from liteframe.evaluate.benchmarks.base import Question, Result, by_group, share_of
from liteframe.evaluate.intervals import Share
from liteframe.machine import usable_cores
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.weight_selection import initialize_student
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.load import load_video_llm
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.toyworld.model import CHECKPOINT

FRAMES = {TEACHER: (4, 8, 16, 32), POOLED: (32, 64), UNTRAINED: (64,), CTD: (32, 64), LMA: (32, 64)}
LONGEST_ANSWER = 3  # tokens; toyworld's answers are single words
DEADLINE = 120.0  # seconds for one video
PROCESSES = min(usable_cores(), 8)  # that store targets, and that answer; figures do not depend on how many they are


def build(system: str, encoder: Path, adapter: Path) -> tuple[Any, Any]:
    """One of the compared systems and its processor; the same each time, for what it leaves to chance is seeded.

    Args:
        system: a name of `demo.report.SYSTEMS`.
        encoder: folder of the student after CTD.
        adapter: folder of the LoRA adapter after LMA.
    """
    torch.manual_seed(0)
    if system == TEACHER:
        return load_video_llm(CHECKPOINT)
    if system == CTD:
        return load_video_llm(CHECKPOINT, encoder=encoder)
    if system == LMA:
        return load_video_llm(CHECKPOINT, encoder=encoder, adapter=adapter)
    vlm, processor = load_video_llm(CHECKPOINT)
    config = LiteFrameEncoder.from_pretrained(encoder).config
    teacher = load_teacher(str(CHECKPOINT))
    if system == POOLED:
        model = attach_encoder(vlm, PooledEncoder(PooledTeacher(teacher, config.compression)), config=config)
    elif system == UNTRAINED:
        student = LiteFrameEncoder(config)
        initialize_student(student, teacher)
        model = attach_encoder(vlm, student)
    else:
        raise ValueError(f"unknown system {system!r}")
    return model.eval(), processor_for(processor, model.config)


@dataclass(frozen=True)
class Scores:
    """Accuracy over all questions and over those of each type."""

    whole: Share
    types: dict[str, Share]

    def to_dict(self) -> dict[str, Any]:
        """Accuracies with their intervals, as report.json holds them: all questions, and each type."""
        return {**_numbers(self.whole), "types": {kind: _numbers(part) for kind, part in self.types.items()}}


def _numbers(share: Share) -> dict[str, Any]:
    return {"accuracy": share.accuracy, "error": share.standard_error, "count": share.count}


def answer_questions(model: Any, processor: Any, questions: Sequence[Question], frames: int) -> list[Result]:
    """Ask each question on its own about `frames` frames of its video, spread evenly.

    Raises:
        VideoError: a video cannot be read: an accuracy over the rest would be another benchmark.
    """
    asking = Asking(frames, None, BENCHMARK.prompt, False, LONGEST_ANSWER, DEADLINE)
    results = []
    for reply in ask_all({"": System.of(model, processor)}, BENCHMARK, {"": questions}, asking):
        if reply.error is not None:
            raise reply.error
        results.append(Result(reply.question, reply.text))
    return results


def answer_point(system: str, frames: int, questions: Sequence[Question], encoder: Path, adapter: Path) -> list[Result]:
    """What a process of its own does: build a system, and ask it each question about so many frames."""
    torch.set_num_threads(1)  # see cli/demo.py
    return answer_questions(*build(system, encoder, adapter), questions, frames)


def score(results: Sequence[Result]) -> Scores:
    """Exact match, whole and by question type.

    Raises:
        ValueError: there are no results.
    """
    parts = by_group(results, "type")
    right = BENCHMARK.reply_is_right
    return Scores(share_of(results, right), {kind: share_of(part, right) for kind, part in parts.items()})


def read_evenly(videos: Iterable[str], frames: int) -> dict[str, np.ndarray]:
    """`frames` frames of each video, spread evenly (fewer where it has fewer), uint8 `[T,H,W,3]`, by its path."""
    clips: dict[str, np.ndarray] = {}
    with DecodeProcess(DEADLINE) as decoder:
        for video in dict.fromkeys(videos):
            info = decoder.probe(video)
            clips[video] = decoder.read(video, choose_frames(info.timeline, frames=frames))
    return clips


def name_of(system: str, frames: int) -> str:
    """A system at a number of frames, as report and answers call it."""
    return f"{system}, {frames} frames"


def compare_systems(
    questions: Sequence[Question], encoder: Path, adapter: Path, runs: int, console: Console
) -> tuple[list[SystemResult], dict[str, list[Result]]]:
    """Score every system at its numbers of frames, in several processes, then time them all in turns.

    Returns:
        The table's rows, and the answers by `name_of`.
    """
    points = [(system, frames) for system, counts in FRAMES.items() for frames in counts]
    answers = answer_points(points, questions, encoder, adapter, console)
    built = {system: build(system, encoder, adapter) for system in FRAMES}
    clips = {frames: read_evenly([questions[0].video], frames)[questions[0].video] for _, frames in points}
    passes = {
        name_of(system, frames): Timed(System.of(*built[system]), clips[frames], questions[0].text)
        for system, frames in points
    }
    console.print(f"timing them in turns, {runs} passes of each", highlight=False)
    times, failed = time_points(passes, runs)
    if failed:
        raise ValueError(f"systems could not be timed: {failed}")
    rows = []
    for system, frames in points:
        looking, clip, text = passes[name_of(system, frames)]
        spent, scores = times[name_of(system, frames)], score(answers[name_of(system, frames)])
        row = SystemResult(
            system,
            frames,
            looking.look(clip).ask(text, max_new_tokens=1).tokens / frames,
            spent["total"] - spent["prefill"],
            spent["prefill"],
            scores.whole.accuracy,
            scores.whole.standard_error,
            scores.whole.count,
            {kind: part.accuracy for kind, part in scores.types.items()},
        )
        rows.append(row)
    return rows, answers


def answer_points(
    points: Sequence[tuple[str, int]], questions: Sequence[Question], encoder: Path, adapter: Path, console: Console
) -> dict[str, list[Result]]:
    """The answers of each system at each number of frames, by `name_of`; a process takes one after the other."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    answers = {}
    with ProcessPoolExecutor(PROCESSES) as pool:  # forked, where Python forks, before the bar has its thread
        asked = {pool.submit(answer_point, *point, questions, encoder, adapter): name_of(*point) for point in points}
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"systems, {len(questions)} questions each", total=len(points))
            for one in as_completed(asked):
                answers[asked[one]] = one.result()
                progress.advance(task)
    return {name: answers[name] for name in asked.values()}
