"""The Video LLMs that the demo compares, and how each is scored and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from liteframe.bench.stages import Latency, measure
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames
from liteframe.demo.report import CTD, LMA, POOLED, TEACHER, UNTRAINED, SystemResult
from liteframe.evaluate.asking import Asking, ask_all
from liteframe.evaluate.benchmarks.base import Question, Result, by_group, share_of
from liteframe.evaluate.benchmarks.own_questions import FreeForm
from liteframe.evaluate.intervals import Share
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.weight_selection import initialize_student
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.load import load_video_llm
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.toyworld.model import CHECKPOINT

BENCHMARK = FreeForm()
LONGEST_ANSWER = 3  # tokens; toyworld's answers are single words
DEADLINE = 120.0  # seconds for one video


def build(system: str, encoder: Path, adapter: Path) -> tuple[Any, Any]:
    """One of the compared systems and its processor.

    Args:
        system: a name of `demo.report.SYSTEMS`.
        encoder: folder of the student after CTD.
        adapter: folder of the LoRA adapter after LMA.
    """
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


def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    frames: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Result]:
    """Ask each question on its own about `frames` frames of its video, spread evenly.

    Raises:
        VideoError: a video cannot be read: an accuracy over the rest would be another benchmark.
    """
    asking = Asking(frames, None, BENCHMARK.prompt, False, LONGEST_ANSWER, DEADLINE)
    results = []
    for reply in ask_all(model, processor, BENCHMARK, questions, asking):
        if reply.error is not None:
            raise reply.error
        results.append(Result(reply.question, reply.text))
        progress(1)
    return results


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


def prompt_inputs(model: Any, processor: Any, frames: np.ndarray, question: str) -> dict[str, Any]:
    """What the model is called with for one question about frames uint8 `[T,H,W,3]`."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return dict(processor(text=[prompt], videos=[frames], return_tensors="pt").to(model.device))


def latency_of(model: Any, processor: Any, question: Question, frames: int, runs: int) -> tuple[Latency, float]:
    """Median encoder and prefill time of a question, and image tokens a frame."""
    clip = read_evenly([question.video], frames)[question.video]
    inputs = prompt_inputs(model, processor, clip, question.text)
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return measure(model, inputs, warmup=max(3, runs // 4), runs=runs), tokens / len(clip)


def evaluate(
    system: str,
    built: tuple[Any, Any],
    questions: Sequence[Question],
    *,
    frames: int,
    runs: int,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[SystemResult, list[Result]]:
    """Score and time one system at one number of frames; also its answers."""
    model, processor = built
    torch.manual_seed(0)
    results = answer_questions(model, processor, questions, frames, progress)
    scores = score(results)
    latency, tokens = latency_of(model, processor, questions[0], frames, runs)
    row = SystemResult(
        system,
        frames,
        tokens,
        latency.encoder_ms,
        latency.prefill_ms,
        scores.whole.accuracy,
        scores.whole.standard_error,
        scores.whole.count,
        {kind: part.accuracy for kind, part in scores.types.items()},
    )
    return row, results
