"""Questions about toyworld scenes, with one-word answers, and a folder of videos with them for training and tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.files import write_jsonl
from liteframe.toyworld.scenes import COLOURS, DIRECTIONS, SHAPES, Scene, render, scene_for, write_video

QUESTION_TYPES = ("colour", "shape", "direction", "order", "event")
# Accuracy of the best answer that does not look at the video: by type, with the constraints of `sample_scene`.
CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "direction": 1 / len(DIRECTIONS),
    "order": 1 / 2,
    "event": 1 / (len(COLOURS) - 2),  # the star never has a mover's colour, and both movers are easy to see
}
TEST_WORLD = 1_000_003  # added to the seed: no held-out scene is ever a training scene


@dataclass(frozen=True)
class SceneQuestion:
    """A question with its answer; `kind` is one of `QUESTION_TYPES`."""

    kind: str
    text: str
    answer: str


def all_questions(scene: Scene) -> list[SceneQuestion]:
    """Every question that a scene answers (eleven of them)."""
    first, second = scene.movers
    questions = [SceneQuestion("colour", f"What colour is the {m.shape}?", m.colour) for m in scene.movers]
    questions += [SceneQuestion("shape", f"What shape is the {m.colour} object?", m.shape) for m in scene.movers]
    for mover in scene.movers:
        questions.append(SceneQuestion("direction", f"Which way does the {mover.colour} object move?", mover.direction))
        questions.append(SceneQuestion("direction", f"Which way does the {mover.shape} move?", mover.direction))
    for one, other in ((first, second), (second, first)):
        text = f"Which object appears first, the {one.colour} one or the {other.colour} one?"
        questions.append(SceneQuestion("order", text, first.colour))
    questions.append(SceneQuestion("event", "What colour is the star that flashes?", scene.flash.colour))
    return questions


def one_of_each(scene: Scene, rng: np.random.Generator) -> list[SceneQuestion]:
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


def conversation_row(video: str, questions: list[SceneQuestion]) -> dict[str, Any]:
    """A training row: the questions as turns of one conversation about one video (the layout of InternVL's data)."""
    turns = []
    for number, question in enumerate(questions):
        prefix = "<video>\n" if number == 0 else ""
        turns.append({"from": "human", "value": prefix + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return {"video": video, "conversations": turns}


def evaluation_rows(video: str, questions: list[SceneQuestion]) -> list[dict[str, Any]]:
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


@dataclass(frozen=True)
class ToyFolder:
    """Where the parts of a rendered world are."""

    train_videos: Path
    train_rows: Path
    test_videos: Path
    test_rows: Path


def write_toyworld(
    folder: Path, *, train: int, test: int, seed: int, progress: Callable[[int], None] = lambda _: None
) -> ToyFolder:
    """Render the videos and write their rows.

    Args:
        folder: gets `train/*.mp4`, `test/*.mp4`, `train.jsonl` (one conversation a video) and `test.jsonl` (one
            question a row, five a video).
        train: number of training videos.
        test: number of held-out videos.
        seed: of the world; the same seed gives the same files.
        progress: called with 1 after each video.
    """
    made = ToyFolder(folder / "train", folder / "train.jsonl", folder / "test", folder / "test.jsonl")
    for part, count, world in ((made.train_videos, train, seed), (made.test_videos, test, seed + TEST_WORLD)):
        part.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for i in range(count):
            scene = scene_for(world, i)
            name = f"{i:05d}.mp4"
            write_video(part / name, render(scene))
            questions = one_of_each(scene, np.random.default_rng([world, i, 1]))
            video = f"{part.name}/{name}"
            rows += (
                [conversation_row(video, questions)] if part == made.train_videos else evaluation_rows(video, questions)
            )
            progress(1)
        write_jsonl(rows, made.train_rows if part == made.train_videos else made.test_rows)
    return made
