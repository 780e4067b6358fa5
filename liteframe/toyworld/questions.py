"""Questions about toyworld scenes, with one-word answers, as rows that the training and evaluation code reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from liteframe.toyworld.scenes import COLOURS, DIRECTIONS, SHAPES, Scene

QUESTION_TYPES = ("colour", "shape", "direction", "order", "event")
# Accuracy of the best answer that does not look at the video: by type, with the constraints of `sample_scene`.
CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "direction": 1 / len(DIRECTIONS),
    "order": 1 / 2,
    "event": 1 / (len(COLOURS) - 2),  # the star never has a mover's colour, and both movers are easy to see
}


@dataclass(frozen=True)
class Question:
    """A question with its answer; `kind` is one of `QUESTION_TYPES`."""

    kind: str
    text: str
    answer: str


def all_questions(scene: Scene) -> list[Question]:
    """Every question that a scene answers (eleven of them)."""
    first, second = scene.movers
    questions = [Question("colour", f"What colour is the {m.shape}?", m.colour) for m in scene.movers]
    questions += [Question("shape", f"What shape is the {m.colour} object?", m.shape) for m in scene.movers]
    for mover in scene.movers:
        questions.append(Question("direction", f"Which way does the {mover.colour} object move?", mover.direction))
        questions.append(Question("direction", f"Which way does the {mover.shape} move?", mover.direction))
    for one, other in ((first, second), (second, first)):
        text = f"Which object appears first, the {one.colour} one or the {other.colour} one?"
        questions.append(Question("order", text, first.colour))
    questions.append(Question("event", "What colour is the star that flashes?", scene.flash.colour))
    return questions


def one_of_each(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """One question of each type, in random order.

    The colour and the shape question are about different objects, so that as turns of one conversation no question
    gives away the answer to another.
    """
    pool = all_questions(scene)
    by_kind = {kind: [q for q in pool if q.kind == kind] for kind in QUESTION_TYPES}
    about = int(rng.integers(2))
    chosen = [by_kind["colour"][about], by_kind["shape"][1 - about]]
    chosen += [by_kind[kind][int(rng.integers(len(by_kind[kind])))] for kind in ("direction", "order", "event")]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def conversation_row(video: str, questions: list[Question]) -> dict[str, Any]:
    """A training row: the questions as turns of one conversation about one video (the layout of InternVL's data)."""
    turns = []
    for number, question in enumerate(questions):
        prefix = "<video>\n" if number == 0 else ""
        turns.append({"from": "human", "value": prefix + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return {"video": video, "conversations": turns}


def evaluation_rows(video: str, questions: list[Question]) -> list[dict[str, Any]]:
    """Evaluation rows: one question each, with its type."""
    return [{"video": video, "question": q.text, "answer": q.answer, "type": q.kind} for q in questions]


def vocabulary_texts() -> list[str]:
    """Texts that together contain every word of the world, from which the tokenizer's vocabulary is made."""
    words = " ".join([*COLOURS, *SHAPES, *DIRECTIONS, "star"])
    templates = [
        "What colour is the ?",
        "What shape is the object ?",
        "Which way does the object move ?",
        "Which object appears first , the one or the one ?",
        "What colour is the star that flashes ?",
    ]
    return [words, *templates]
