"""The Video LLMs that the demo compares, and how each is scored and timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import InternVLForConditionalGeneration

from liteframe.bench.stages import Latency, measure
from liteframe.data.video.process import DecodeProcess
from liteframe.demo.report import CTD, LMA, POOLED, TEACHER, UNTRAINED, Result
from liteframe.evaluate.scoring import score
from liteframe.evaluate.videoqa import answer_rows, read_uniformly
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.weight_selection import initialize_student
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.load import load_video_llm, processor_for
from liteframe.reduce.pooled_teacher import PooledTeacher

CHECKPOINT = Path(__file__).parent / "checkpoint"


def build(system: str, encoder: Path, adapter: Path) -> tuple[Any, Any]:
    """One of the compared systems and its processor.

    Args:
        system: a name of `demo_report.SYSTEMS`.
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
    assert isinstance(vlm, InternVLForConditionalGeneration)
    config = LiteFrameEncoder.from_pretrained(encoder).config
    teacher = load_teacher(str(CHECKPOINT))
    if system == POOLED:
        model = attach_encoder(vlm, PooledTeacher(teacher, config.compression), config=config)
    elif system == UNTRAINED:
        student = LiteFrameEncoder(config)
        initialize_student(student, teacher)
        model = attach_encoder(vlm, student)
    else:
        raise ValueError(f"unknown system {system!r}")
    return model.eval(), processor_for(processor, model.config)


def prompt_inputs(model: Any, processor: Any, shown: Any, question: str) -> dict[str, Any]:
    """What the model is called with for one question about frames uint8 `[T, H, W, 3]`."""
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    return dict(processor(text=[prompt], videos=[shown], return_tensors="pt").to(model.device))


def latency_of(model: Any, processor: Any, rows: list[dict[str, Any]], frames: int, runs: int) -> tuple[Latency, float]:
    """Median encoder and prefill time of the first question, and image tokens a frame."""
    with DecodeProcess() as decoder:
        shown = read_uniformly(decoder, Path(rows[0]["video"]), frames)
    inputs = prompt_inputs(model, processor, shown, rows[0]["question"])
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    return measure(model, inputs, warmup=max(3, runs // 4), runs=runs), tokens / len(shown)


def evaluate(
    system: str,
    built: tuple[Any, Any],
    rows: list[dict[str, Any]],
    *,
    frames: int,
    runs: int,
    progress: Callable[[int], None] = lambda _: None,
) -> tuple[Result, list[str]]:
    """Score and time one system at one number of frames; also its answers."""
    model, processor = built
    torch.manual_seed(0)
    answers = answer_rows(model, processor, rows, frames=frames, max_new_tokens=3, progress=progress)
    scores = score(rows, answers)
    latency, tokens = latency_of(model, processor, rows, frames, runs)
    types = {kind: part["accuracy"] for kind, part in scores["types"].items()}
    result = Result(
        system,
        frames,
        tokens,
        latency.encoder_ms,
        latency.prefill_ms,
        scores["accuracy"],
        scores["error"],
        scores["count"],
        types,
    )
    return result, answers
