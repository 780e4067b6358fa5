"""Toy films: scenes of toyworld cut together, of which everything is known, and questions about their past and present.

A film is asked at whole seconds; what was shown before second t has been seen by then. The tasks are those of OVO-Bench
(arXiv 2501.05510) that this world has, by its names: of what is there now, in the scene that runs, and of the past, in
scenes before it, so that memories can be told apart by what they lose.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from liteframe.toyworld.scenes import COLOURS, FLASH_FRAMES, FPS, FRAMES, SHAPES, SIZE, Mover, Scene, render, scene_for

LENGTHS = (2, 8, 32, 128)  # scenes
SCENE_SECONDS = FRAMES // FPS
SETTLED = 5  # seconds after which both shapes of a scene are there
NOW = FPS // 2  # frames before a question that are "now" for what is short
TASKS = ("EPM", "ASI", "HLD", "ATR", "OJR", "STU", "REC", "SSR", "CRR")
PRESENT = ("ATR", "OJR", "STU", "SSR")  # the others are about the past
UNABLE = "unable"
SIDES = ("left", "right")
YES_NO = ("Yes", "No")
MOST = max(LENGTHS)


@dataclass(frozen=True)
class FilmQuestion:
    """A question that a film answers.

    Attributes:
        task: one of `TASKS`.
        second: at which it is asked; what was shown before it has been seen.
        text: in words of toyworld.
        answer: one of the candidates.
        candidates: the words among which the answer is.
        about: second of the film that it is about; None where it is about no single one.
    """

    task: str
    second: int
    text: str
    answer: str
    candidates: tuple[str, ...]
    about: int | None = None

    @property
    def past(self) -> bool:
        """Whether it is about what is no longer there."""
        return self.task not in PRESENT


@dataclass(frozen=True)
class Flash:
    """A star of a film: its color, and the frames of the film from `first` to `stop` - 1 that show it."""

    colour: str
    first: int
    stop: int


@dataclass(frozen=True)
class Film:
    """Scenes in the order in which they are shown, each from one hard cut to the next.

    Attributes:
        scenes: of toyworld, 8 seconds each.
        start: second of the time line at which the first begins.
    """

    scenes: tuple[Scene, ...]
    start: int = 0

    @property
    def end(self) -> int:
        """Second at which the last scene ends."""
        return self.start + SCENE_SECONDS * len(self.scenes)

    @cached_property
    def flashes(self) -> tuple[Flash, ...]:
        """Its stars in order."""
        starts = [(scene, FRAMES * number + FPS * self.start) for number, scene in enumerate(self.scenes)]
        return tuple(Flash(s.flash.colour, at + s.flash.first, at + s.flash.first + FLASH_FRAMES) for s, at in starts)

    def flashes_now(self, second: int) -> bool:
        """Whether one of its stars has been there in the last half second."""
        return any(f.first < FPS * second and f.stop > FPS * second - NOW for f in self.flashes)

    def scene_at(self, second: int) -> int:
        """Number of the scene that is shown in the second that ends at this one."""
        return (second - 1 - self.start) // SCENE_SECONDS

    def frames(self) -> np.ndarray:
        """All frames, uint8 RGB [T,H,W,3], `FPS` a second: 12 KiB each."""
        return np.concatenate([render(scene) for scene in self.scenes])


def film_for(seed: int, number: int, scenes: int) -> Film:
    """The film with a given number, of so many scenes, in the world of a given seed; no two share a scene."""
    return Film(tuple(scene_for(seed, number * MOST + i) for i in range(scenes)))


def asking_seconds(film: Film, rng: np.random.Generator, most: int) -> list[int]:
    """At most so many whole seconds, ascending, at which a scene after the first has been seen whole or nearly."""
    late = [film.start + SCENE_SECONDS * i + s for i in range(1, len(film.scenes)) for s in range(SETTLED + 1, 9)]
    return sorted(int(s) for s in rng.choice(late, size=min(most, len(late)), replace=False))


def film_questions(film: Film, rng: np.random.Generator, *, seconds: int = 4, rounds: int = 1) -> list[FilmQuestion]:
    """Questions of all tasks at so many moments of a film, in the order of time, none of them twice.

    Whether a star flashes now is asked where one does in half of the cases, at moments of its own.

    Args:
        film: that they are about.
        rng: draws them.
        seconds: moments at which is asked.
        rounds: questions of a task that are drawn at each of them, but of whether a star flashes.
    """
    moments = asking_seconds(film, rng, seconds)
    drawn = [q for second in moments for _ in range(rounds) for q in questions_at(film, second, rng)]
    asked = [q for q in drawn if q.task != "SSR"]
    flashing = [second for second in range(film.start + 1, film.end + 1) if film.flashes_now(second)]
    for second in moments:
        if flashing and rng.random() < 0.5:
            second = int(rng.choice(flashing))
        asked.append(_flash_now(film, second))
    return sorted(dict.fromkeys(asked), key=lambda q: q.second)


def questions_at(film: Film, second: int, rng: np.random.Generator) -> list[FilmQuestion]:
    """One question of each task at a moment when both shapes of a scene have been there for a second.

    Left out are those that have no answer then: on which side a shape is that crosses the middle, and whether a star of
    a color has flashed where all have.
    """
    now = film.scene_at(second)
    scene = film.scenes[now]
    one, other = (scene.movers[i] for i in rng.permutation(2))
    questions = [
        _colour_then(film, "EPM", second, rng, there=True),
        _order(film, second, rng),
        _colour_then(film, "HLD", second, rng, there=bool(rng.random() < 0.5)),
        FilmQuestion("ATR", second, f"What colour is the {one.shape} now?", one.colour, tuple(COLOURS)),
        FilmQuestion("OJR", second, f"What shape is the {other.colour} object now?", other.shape, SHAPES),
        _count(film, second),
        _flash_now(film, second),
    ]
    last = FPS * (second - film.start) - FRAMES * now  # frame of the scene behind the last that was seen
    if sided := [mover for mover in (one, other) if _side(mover, last)]:
        answer = _side(sided[0], last)
        questions.append(FilmQuestion("STU", second, f"Which side is the {sided[0].shape} on now?", answer, SIDES))
    if (seen := _seen(film, second, rng)) is not None:
        questions.append(seen)
    return questions


def _colour_then(film: Film, task: str, second: int, rng: np.random.Generator, *, there: bool) -> FilmQuestion:
    """The color of a shape at a second of an earlier scene, or, in the first, of this one."""
    now = film.scene_at(second)
    number = int(rng.integers(now)) if now else 0
    local = int(rng.integers(SETTLED, SCENE_SECONDS if now else second - film.start))
    about, movers = film.start + SCENE_SECONDS * number + local, film.scenes[number].movers
    if there:
        mover = movers[int(rng.integers(2))]
        shape, answer = mover.shape, mover.colour
    else:
        shape = str(rng.choice([shape for shape in SHAPES if shape not in [m.shape for m in movers]]))
        answer = UNABLE
    candidates = tuple(COLOURS) if task == "EPM" else (*COLOURS, UNABLE)
    return FilmQuestion(task, second, f"What colour was the {shape} at second {about}?", answer, candidates, about)


def _order(film: Film, second: int, rng: np.random.Generator) -> FilmQuestion:
    """Which of two things of different color came first; of different scenes where there are two."""
    first: dict[tuple[str, str], tuple[int, int]] = {}
    for number, scene in enumerate(film.scenes[: film.scene_at(second) + 1]):
        for mover in scene.movers:
            first.setdefault((mover.colour, mover.shape), (number, mover.first))
    pairs = [(a, b) for a in first for b in first if a[0] != b[0]]
    pairs = [(a, b) for a, b in pairs if first[a][0] != first[b][0]] or pairs
    one, other = pairs[int(rng.integers(len(pairs)))]
    text = f"Which object appeared first, the {' '.join(one)} or the {' '.join(other)}?"
    return FilmQuestion("ASI", second, text, min((one, other), key=first.__getitem__)[0], (one[0], other[0]))


def _count(film: Film, second: int) -> FilmQuestion:
    count = sum(flash.stop <= FPS * second for flash in film.flashes)
    candidates = tuple(str(n) for n in range(len(film.scenes) + 1))
    return FilmQuestion("REC", second, "How many times did they see a star flash?", str(count), candidates)


def _flash_now(film: Film, second: int) -> FilmQuestion:
    return FilmQuestion("SSR", second, "Does a star flash now?", YES_NO[not film.flashes_now(second)], YES_NO)


def _seen(film: Film, second: int, rng: np.random.Generator) -> FilmQuestion | None:
    seen = sorted({flash.colour for flash in film.flashes if flash.stop <= FPS * second})
    under_way = [flash.colour for flash in film.flashes if flash.first < FPS * second < flash.stop]
    unseen = [colour for colour in COLOURS if colour not in (*seen, *under_way)]
    if not (seen and unseen):
        return None
    answer = YES_NO[int(rng.integers(2))]
    colour = str(rng.choice(seen if answer == "Yes" else unseen))
    return FilmQuestion("CRR", second, f"Has a {colour} star flashed?", answer, YES_NO)


def _side(mover: Mover, stop: int) -> str:
    """On which side it was in all of the second before frame `stop`; "" where it was near the middle."""
    across = [mover.centre(frame)[0] - SIZE / 2 for frame in range(stop - FPS, stop)]
    if min(map(abs, across)) < SIZE / 16 or min(across) < 0 < max(across):
        return ""
    return SIDES[across[0] > 0]


def film_words() -> list[str]:
    """Words of films, of their questions and options, and of times up to the end of the longest film."""
    texts = [
        "What colour was the at second ?", "Which object appeared first , the or the ?", "is now", "side on",
        "How many times did they see a star flash ?", "Does a star flash now ?", "Has flashed", UNABLE, "to answer",
        *YES_NO, "s A B C D E ;",
    ]  # fmt: skip
    words = dict.fromkeys(word for text in texts for word in text.split())
    return [*words, *map(str, range(MOST * SCENE_SECONDS + 1))]
