"""The doing of benchmarks/film_training.py: runs of the real commands, and what comes of them on held-out films."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from claims_plan import SEEDS as WORLDS
from film_memories import KeptEncoder, entries_of
from film_training_plan import ARMS, FRAMES, LEARNED, LORA, SCENE_ARMS, SYSTEMS, Arm, Cell, Setup
from film_training_rows import conversation, held_out, write_films
from toy_students import asked as asked_about_scene
from toy_students import films_of

from liteframe import load_video_llm
from liteframe.answer.memory import memories
from liteframe.answer.session import StreamSession
from liteframe.cli.main import main as liteframe
from liteframe.evaluate.asking import System
from liteframe.files import file_digest, write_jsonl
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor
from liteframe.texts import read_json, read_jsonl
from liteframe.toyworld.films import FPS
from liteframe.toyworld.questions import write_toyworld


@contextmanager
def labels_in_seconds() -> Iterator[None]:
    """Slots are labeled in training as sessions of `labels="seconds"` label them: what the film model has learned.

    LMA has no option for that: it writes the numbers of frames.
    """

    def video_text(self: Any, slots: Sequence[tuple[int, int, int]], times: Any = None) -> str:
        return "\n".join(f"{a / FPS:.1f}-{b / FPS:.1f} s: {self.image_text(n)}" for a, b, n in slots if n)

    with patch.object(LiteFrameInternVLProcessor, "video_text", video_text):
        yield


def command(*words: Any) -> None:
    """Do in this process what `liteframe WORDS` does.

    Raises:
        ValueError: it failed, and has said why.
    """
    print("$ liteframe", *words, flush=True)
    if code := liteframe([str(word) for word in words]):
        raise ValueError(f"liteframe {words[0]} ended with exit code {code}")


class FilmShop:
    """What all cells share, made when it is first needed.

    Args:
        work: folder for films, runs and adapters.
        setup: how much of it.
        model: folder of a model that has learned films.
        encoder: folder of a student of toyworld.
    """

    def __init__(self, work: Path, setup: Setup, model: Path, encoder: Path) -> None:
        self.work, self.setup, self.model, self.encoder = work, setup, model, encoder
        self._kept: dict[tuple[int, int], Any] = {}  # tokens of clips: no arm trains the encoder or the projector

    def do(self, cell: Cell) -> dict[str, Any]:
        """What came of a cell."""
        if cell.kind == "scene":
            return {"weights": digests(self.encoder), **self.scene_arm(cell)}
        if cell.kind == "film":
            found = self.film_arm(cell)
        else:
            found = self.asked(None, self.base, ("all",))
        return {"weights": digests(self.model, self.encoder), **found}

    @cached_property
    def films(self) -> Path:
        """The folder of films that are learned from, with their rows."""
        folder = self.work / "films"
        if not (folder / "questions.jsonl").is_file():
            write_films(folder, self.setup)
        return folder

    @cached_property
    def tokens(self) -> Path:
        """The token cache of all these films."""
        cache = self.work / "tokens"
        words = ("--config=toy", *self.of_data("conversations", self.films / "all.jsonl"))
        command("cache", "tokens", *words, f"--run={self.work / 'cached'}", "--views=1", "-o", cache)
        return cache

    def of_data(self, kind: str, rows: Path) -> tuple[str, ...]:
        """Options of the model and of what it learns from."""
        model = (f"--model.vlm={self.model}", f"--model.encoder={self.encoder}", *LORA)
        data = (f"--data.{kind}={rows}", f"--data.frames=[{FRAMES}]", "--data.fps=[8.0,8.0]")
        return (*model, *data, "--data.cache_features=false", "--data.workers=0", "--trainer.accelerator=cpu")

    def fit(self, run: Path, arm: Arm, seed: int, steps: int, *options: str) -> Path:
        """Train, through the command; the adapter's folder."""
        rows = (self.films if arm.rows in LEARNED else self.pairs) / f"{arm.rows}.jsonl"
        program, kind = ("prefer", "pairs") if arm.rows == "pairs" else ("align", "conversations")
        batch = self.setup.batch if arm.rows in LEARNED else self.setup.pair_batch
        command(
            program, "fit", "--config=toy", *self.of_data(kind, rows), f"--data.tokens={self.tokens}",
            f"--data.batch_size={batch}", f"--data.micro_batch_size={batch}", f"--model.optimizer.lr={arm.rate}",
            "--model.optimizer.warmup_steps=5", f"--trainer.max_steps={steps}", f"--checkpoint.every_n_steps={steps}",
            f"--run={run}", f"--seed_everything={seed}", "--resume=auto", *arm.options, *options,
        )  # fmt: skip
        return run / "adapter"

    @cached_property
    def base(self) -> Path:
        """The adapter that all arms go on from: it aligns the language model with the student's tokens."""
        run = self.work / "base"
        if not (run / "report.json").is_file():
            with labels_in_seconds():
                self.fit(run, Arm(rate=3e-4), 0, self.setup.base_steps)
        return run / "adapter"

    @cached_property
    def pairs(self) -> Path:
        """The folder of preference pairs of the base's own answers, and of the chosen ones as conversations."""
        folder = self.work / "pairs"
        if not (folder / "chosen.jsonl").is_file():
            command(
                "prefer", "pairs", self.films / "questions.jsonl", "--vlm", self.model, "--encoder", self.encoder,
                "--adapter", self.base, "--kinds", "irrelevant,incomplete", "--frames", FRAMES, "--fps", FPS,
                "--max-new-tokens", 3, "-o", folder,
            )  # fmt: skip
            rows = [
                {"video": row["video"], "conversations": conversation([(row["question"], row["chosen"])])}
                for _, row in read_jsonl(folder / "pairs.jsonl")
            ]
            write_jsonl(rows, folder / "chosen.jsonl")
        return folder

    def film_arm(self, cell: Cell) -> dict[str, Any]:
        """Train an arm and ask about held-out films."""
        arm, run = ARMS[cell.name], self.work / f"{cell.name.replace(', ', '_').replace(' ', '_')}_{cell.seed}"
        steps = arm.times * (self.setup.steps if arm.rows in LEARNED else self.setup.pair_steps)
        with labels_in_seconds():
            adapter = self.fit(run, arm, cell.seed, steps, f"--model.init_adapter={self.base}")
        found = self.asked(arm.memory, adapter, arm.systems)
        if arm.rows not in LEARNED:
            found["pairs"] = read_json(self.pairs / "counts.json")
        shutil.rmtree(run)
        return found

    def asked(self, memory: str | None, adapter: Path, systems: Sequence[str]) -> dict[str, Any]:
        """A 1 or a 0 for each question about held-out films, and the mean number of entries that one reads.

        Args:
            memory: that the adapter is for.
            adapter: its folder.
            systems: memories, by their names in SYSTEMS.
        """
        model, processor = load_video_llm(self.model, encoder=self.encoder, adapter=adapter, memory=memory)
        encoder = KeptEncoder(model, processor)
        encoder._kept = self._kept
        right, entries = dict.fromkeys(systems, ""), {name: list[int]() for name in systems}
        for _, film, questions in held_out(self.setup.moments):
            frames = film.frames()
            for name in systems:
                kind, settings = SYSTEMS[name]
                empty = memories[kind](**settings)
                session = StreamSession(model, processor, empty, fps=FPS, labels="seconds", encoder=encoder)
                for second, group in groupby(questions, lambda question: question.second):
                    asked = [*group]
                    session.add(frames[session.frames : FPS * second])
                    entries[name].append(entries_of(session, asked[0].text))
                    scores = session.score_all([(q.text, q.candidates) for q in asked])
                    told = zip(asked, scores, strict=True)
                    right[name] += "".join("01"[q.candidates[int(one.argmax())] == q.answer] for q, one in told)
        return {"right": right, "entries": {name: round(float(np.mean(some)), 1) for name, some in entries.items()}}

    def scene_arm(self, cell: Cell) -> dict[str, Any]:
        """LMA of the shipped tiny InternVL on videos of one scene, with a soft target or without, and its answers."""
        videos, run = self.work / "scenes", self.work / f"{cell.name.replace(' ', '_')}_{cell.seed}"
        if not (videos / "test.jsonl").is_file():
            write_toyworld(videos, train=self.setup.scenes, test=1, seed=0)
        weight = SCENE_ARMS[cell.name]
        command(
            "align", "fit", "--config=toy", f"--model.encoder={self.encoder}", "--data.frames=[64]",
            f"--data.conversations={videos / 'train.jsonl'}", "--data.batch_size=8", "--data.micro_batch_size=8",
            "--data.cache_features=false", f"--model.distillation.weight={weight}", "--trainer.accelerator=cpu",
            f"--trainer.max_steps={self.setup.scene_steps}", f"--checkpoint.every_n_steps={self.setup.scene_steps}",
            f"--run={run}", f"--seed_everything={cell.seed}", "--resume=auto",
        )  # fmt: skip
        model, processor = load_video_llm("toyworld", encoder=self.encoder, adapter=run / "adapter")
        system = System.of(model, processor)
        films = [film for world in WORLDS for film in films_of(world, self.setup.test_scenes)]
        right = "".join(asked_about_scene(system, film, 64) for film in films)
        shutil.rmtree(run)
        return {"right": {"scenes": right}}


def digests(*folders: Path) -> list[str]:
    """Of the weights of models."""
    return [file_digest(folder / "model.safetensors")[:16] for folder in folders]
