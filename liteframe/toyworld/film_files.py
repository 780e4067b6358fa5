"""Films as files: `python -m liteframe.toyworld.film_files FOLDER` writes them as OVO-Bench lays out its own.

FOLDER gets `ovo_bench_new.json` and `src_videos/`, as that benchmark is downloaded; `questions.jsonl`, the same
questions with words for answers; and `eval.yaml`, with prompts in the words that toyworld knows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.files import check_output, json_bytes, write_atomically, write_jsonl
from liteframe.toyworld.films import LENGTHS, NOW, UNABLE, Film, FilmQuestion, film_for, film_questions
from liteframe.toyworld.questions import TEST_WORLD
from liteframe.toyworld.scenes import FPS, write_video

ANNOTATIONS, VIDEOS, QUESTIONS, SETTINGS = "ovo_bench_new.json", "src_videos", "questions.jsonl", "eval.yaml"
CHOICES = ("EPM", "ASI", "HLD", "ATR", "OJR", "STU")  # tasks with options
OPTIONS = 4
EVAL = """# For `liteframe eval ovo-bench`: toyworld knows no instructions.
prompt: "{question} {options}"
prompts: {REC: "{question}", SSR: "{question}", CRR: "{question}"}
max_new_tokens: 3
"""


def write_films(
    folder: Path, *, scenes: Sequence[int] = LENGTHS[:2], films: int = 2, seconds: int = 4, seed: int = 0
) -> int:
    """Render films and write their questions.

    Args:
        folder: gets the files; those of the same names are replaced.
        scenes: of a film; there are `films` of each length.
        films: how many.
        seconds: moments of a film at which it is asked.
        seed: of a world that shares no scene with that of training.

    Returns:
        How many items OVO-Bench's file has.

    Raises:
        ValueError: a film has fewer than 2 scenes or more than the longest, or nothing can be written there.
    """
    if wrong := [count for count in scenes if not 2 <= count <= LENGTHS[-1]]:
        raise ValueError(f"films of {wrong[0]} scenes: a film has 2 to {LENGTHS[-1]}")
    check_output(folder, folder=True)
    (folder / VIDEOS).mkdir(parents=True, exist_ok=True)
    items: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for count in scenes:
        for number in range(films):
            film = film_for(seed + TEST_WORLD, number, count)
            rng = np.random.default_rng([seed, count, number])
            questions = film_questions(film, rng, seconds=seconds)
            video = f"{count}_scenes_{number:03d}.mp4"
            write_video(folder / VIDEOS / video, film.frames())
            items += ovo_items(film, video, questions, rng, len(items))
            rows += [
                {"video": f"{VIDEOS}/{video}", "question": q.text, "answer": q.answer, "type": q.task, "end": q.second}
                for q in questions
            ]
    write_jsonl(rows, folder / QUESTIONS)
    write_atomically(folder / SETTINGS, EVAL.encode())
    write_atomically(folder / ANNOTATIONS, json_bytes(items, indent=1))
    return len(items)


def ovo_items(
    film: Film, video: str, questions: Sequence[FilmQuestion], rng: np.random.Generator, first: int
) -> list[dict[str, Any]]:
    """Items of OVO-Bench's file: one a multiple-choice question, and one for each forward task, asked again and again.

    Args:
        film: what they are about.
        video: name of its file.
        questions: of `film_questions`.
        rng: draws the other options and their order.
        first: id of the first item.
    """
    items = [_choice(question, rng) for question in questions if question.task in CHOICES]
    asked = {task: [question for question in questions if question.task == task] for task in ("REC", "SSR")}
    items += [_count(film, asked["REC"]), _steps(film, asked["SSR"]), _clue(film, rng)]
    return [{"id": first + number, "video": video, **item} for number, item in enumerate(items)]


def options_of(question: FilmQuestion, rng: np.random.Generator) -> tuple[list[str], int]:
    """At most four options of a multiple-choice question in any order, and the number of the right one."""
    others = [word for word in question.candidates if word != question.answer]
    unable = [word for word in others if word == UNABLE]  # always offered where it may be right
    others = unable + [str(word) for word in rng.permutation([word for word in others if word != UNABLE])]
    words = [str(word) for word in rng.permutation([question.answer, *others[: OPTIONS - 1]])]
    return [f"{word} to answer" if word == UNABLE else word for word in words], words.index(question.answer)


def option_row(options: Sequence[str]) -> str:
    """Options as OVO-Bench writes them."""
    return " ".join(f"{letter}. {text};" for letter, text in zip("ABCD", options, strict=False))


def _choice(question: FilmQuestion, rng: np.random.Generator) -> dict[str, Any]:
    options, right = options_of(question, rng)
    return {
        "task": question.task, "realtime": question.second, "question": question.text, "answer": options[right],
        "options": options, "gt": right,
    }  # fmt: skip


def _count(film: Film, asked: Sequence[FilmQuestion]) -> dict[str, Any]:
    starts = [flash.first / FPS for flash in film.flashes]
    ends = [flash.stop / FPS for flash in film.flashes]
    info = [{"realtime": question.second, "count": int(question.answer)} for question in asked]
    return {"task": "REC", "activity": "see a star flash", "start_times": starts, "end_times": ends, "test_info": info}


def _steps(film: Film, asked: Sequence[FilmQuestion]) -> dict[str, Any]:
    step = asked[0].text
    info = [{"realtime": question.second, "step": step, "type": int(question.answer == "Yes")} for question in asked]
    spans = [(flash.first / FPS, (flash.stop + NOW) / FPS) for flash in film.flashes]
    start, end = [start for start, _ in spans], [end for _, end in spans]
    return {
        "task": "SSR",
        "tutorial": "toy film",
        "all_steps": [step],
        "start_time": start,
        "end_time": end,
        "test_info": info,
    }


def _clue(film: Film, rng: np.random.Generator) -> dict[str, Any]:
    """A star of a color, asked for from before it flashes first until after."""
    first = {flash.colour: flash for flash in reversed(film.flashes)}
    colour = str(rng.choice(sorted(first)))
    clue = first[colour].stop / FPS
    before = [s for s in range(film.start + 1, film.end + 1) if s < clue]
    after = [s for s in range(film.start + 1, film.end + 1) if s >= clue]
    chosen = [
        *rng.choice(before, min(2, len(before)), replace=False),
        *rng.choice(after, min(3, len(after)), replace=False),
    ]
    info = [{"realtime": int(second), "type": int(second >= clue)} for second in sorted(chosen)]
    return {
        "task": "CRR", "question": f"Has a {colour} star flashed?", "answer": "Yes", "ask_time": info[0]["realtime"],
        "clue_time": clue, "test_info": info,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Write films and say how many questions they have."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, nargs="+", default=list(LENGTHS[:2]), help="of a film (default 2 8)")
    parser.add_argument("--films", type=int, default=2, help="of each length (default 2)")
    parser.add_argument("--seconds", type=int, default=4, help="moments at which a film is asked (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    count = write_films(args.folder, scenes=args.scenes, films=args.films, seconds=args.seconds, seed=args.seed)
    print(f"{args.folder}: {len(args.scenes) * args.films} films, {count} items")
    return 0


if __name__ == "__main__":
    sys.exit(main())
