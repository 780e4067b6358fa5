"""Films that benchmarks/film_training.py learns from, as files with rows, and those that it asks about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from claims_plan import SEEDS as WORLDS
from film_training_plan import TEST_FILMS, Setup

from liteframe.files import write_jsonl
from liteframe.toyworld.films import (
    FPS,
    PRESENT,
    SCENE_SECONDS,
    Film,
    FilmQuestion,
    asking_seconds,
    film_for,
    film_questions,
    questions_at,
)
from liteframe.toyworld.questions import TEST_WORLD
from liteframe.toyworld.scenes import write_video

LEARNED_WORLD = 77  # no scene of it has been shown to the film model, or is asked about
LENGTHS = (2, 3)  # scenes of films that are learned from
UNSEEN = TEST_WORLD + 900  # worlds of held-out films
SHOWN = "<video>\n"
Rows = list[dict[str, Any]]
Name = tuple[int, int, int]  # scenes, world and number of a held-out film


def held_out(moments: int) -> Iterator[tuple[Name, Film, list[FilmQuestion]]]:
    """Films that nothing was trained on, the short ones first, and what they are asked, in order of time."""
    for scenes, count in TEST_FILMS.items():
        for number in range(count):
            for world in WORLDS:
                film = film_for(UNSEEN + world, number, scenes)
                rng = np.random.default_rng([UNSEEN + world, number, scenes])
                yield (scenes, world, number), film, film_questions(film, rng, seconds=moments)


def write_films(folder: Path, setup: Setup) -> None:
    """Films, each up to the second at which it is asked, as mp4 files, with their rows.

    Args:
        folder: gets `videos/`; `films.jsonl`, several questions about a film as turns; `apart.jsonl`, each of these in
            a row of its own, with the span that it is about; `questions.jsonl`, about further films, as `liteframe
            prefer pairs` reads them; and `all.jsonl`, one conversation about each film.
        setup: how many.
    """
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    rows, apart, questions, shown = Rows(), Rows(), Rows(), Rows()
    for number in range(setup.films + setup.pair_films):
        rng = np.random.default_rng([LEARNED_WORLD, number])
        film = film_for(LEARNED_WORLD, number, LENGTHS[number % len(LENGTHS)])
        (second,) = asking_seconds(film, rng, 1)
        asked = questions_at(film, second, rng)
        video = f"videos/{number:04d}.mp4"
        write_video(folder / video, film.frames()[: FPS * second])
        shown.append({"video": video, "conversations": turns_of(asked[:1])})
        if number < setup.films:
            asked = [asked[i] for i in rng.permutation(len(asked))[: setup.turns]]
            rows.append({"video": video, "conversations": turns_of(asked)})
            apart += [{"video": video, "conversations": turns_of([q]), **span_of(film, q)} for q in asked]
        else:
            for q in asked:
                start, end = span_of(film, q).get("span", (None, None))
                named = {"type": q.task} if start is None else {"type": q.task, "start": start, "end": end}
                questions.append({"video": video, "question": q.text, "answer": q.answer, **named})
    write_jsonl(rows, folder / "films.jsonl")
    write_jsonl(apart, folder / "apart.jsonl")
    write_jsonl(shown, folder / "all.jsonl")
    write_jsonl(questions, folder / "questions.jsonl")


def turns_of(asked: Sequence[FilmQuestion]) -> list[dict[str, str]]:
    """A conversation about a film."""
    return conversation([(question.text, question.answer) for question in asked])


def conversation(asked: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Questions about a video, with their answers, as turns."""
    turns: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(asked):
        turns += [{"from": "human", "value": question if number else f"{SHOWN}{question}"}]
        turns += [{"from": "gpt", "value": answer}]
    return turns


def span_of(film: Film, question: FilmQuestion) -> dict[str, list[int]]:
    """Start and end, in seconds, of the scene that a question is about; of one that is about all, nothing."""
    if question.about is None and question.task not in PRESENT:
        return {}
    scene = film.scene_at(question.second if question.about is None else question.about + 1)
    return {"span": [SCENE_SECONDS * scene, min(SCENE_SECONDS * (scene + 1), question.second)]}
