"""A folder of toyworld videos with training conversations and held-out questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.data.manifest import write_jsonl
from liteframe.toyworld.questions import conversation_row, evaluation_rows, one_of_each
from liteframe.toyworld.scenes import render, scene_for, write_video

TEST_WORLD = 1_000_003  # added to the seed: no held-out scene is ever a training scene


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
