"""CLEVRER (arXiv 1910.01442): rendered collisions, with descriptive and causal questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from liteframe.data.importers.base import (
    Adapter,
    License,
    Problem,
    Record,
    Source,
    Turns,
    layout_error,
    locate,
    read_list,
)

INSTRUCTION = "Answer with the letters of all that are right, or with None."


class Clevrer(Adapter):
    """Videos by number; questions `{scene_index, questions}` in one list a split, without answers in `test`."""

    name = "clevrer"
    title = "CLEVRER"
    published = "10,000 videos in train, 5,000 each in validation and test"
    license = License("CC0", ("public domain: no conditions",), "http://clevrer.csail.mit.edu")
    splits = ("train", "validation", "test")

    def records(self, source: Source) -> Iterator[Record | Problem]:
        """The videos that the questions name; where there is no question file, those that are there."""
        folder, split = source.folder, source.split or self.splits[0]
        videos = folder / f"video_{split}"
        questions = [
            path for path in (folder / f"{split}.json", folder / "questions" / f"{split}.json") if path.is_file()
        ]
        if not videos.is_dir():
            raise layout_error(
                folder,
                f"video_{split}/video_00000-01000/video_00000.mp4 and so on, and {split}.json with the questions",
                f"unpack the videos: unzip video_{split}.zip -d video_{split}",
            )
        if questions:
            for where, row in read_list(questions[0]):
                yield self._record(folder, split, where, row)
            return
        for path in sorted(videos.glob("*/video_*.mp4")):
            video = locate(folder, ("",), str(path.relative_to(folder)), str(path), "")
            yield video if isinstance(video, Problem) else Record(video, str(path), {"split": split})

    def _record(self, folder: Path, split: str, where: str, row: Any) -> Record | Problem:
        scene = row.get("scene_index") if isinstance(row, dict) else None
        if isinstance(scene, bool) or not isinstance(scene, int) or not 0 <= scene < 100_000:
            reason = f"scene_index is {scene!r}; it must be a number from 0"
            return Problem(f"scene {scene}", "record", reason, "mend or remove the record", where)
        first = scene // 1000 * 1000
        name = f"video_{split}/video_{first:05d}-{first + 1000:05d}/video_{scene:05d}.mp4"
        unpack = f"unpack the videos: unzip video_{split}.zip -d video_{split}"
        video = locate(folder, ("",), name, where, unpack)
        if isinstance(video, Problem):
            return video
        asked = row.get("questions")
        questions = [q for q in asked if isinstance(q, dict)] if isinstance(asked, list) else []
        turns = [turn for question in questions for turn in _turns(question)]
        return Record(video, where, {"split": split}, (turns,) if turns else ())


def _turns(question: dict[str, Any]) -> Turns:
    """Question and answer; nothing for a question without answers (the test split)."""
    text, choices = str(question.get("question", "")), question.get("choices")
    if choices is None:
        answer = question.get("answer")
        return _pair(text, str(answer)) if answer is not None else []
    if not isinstance(choices, list) or len(choices) > len(ascii_uppercase):
        return []
    if not all(isinstance(choice, dict) and choice.get("answer") in ("correct", "wrong") for choice in choices):
        return []
    letters = ascii_uppercase[: len(choices)]
    lines = [f"{letter}. {choice.get('choice', '')}" for letter, choice in zip(letters, choices, strict=True)]
    right = [letter for letter, choice in zip(letters, choices, strict=True) if choice["answer"] == "correct"]
    return _pair("\n".join([text, *lines, INSTRUCTION]), ", ".join(right) or "None")


def _pair(question: str, answer: str) -> Turns:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
