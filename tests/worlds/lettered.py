"""Toyworld questions as multiple choice, and the toyworld Video LLM made to answer them by letters.

Its answer words (red, circle, left, ...) are renamed to the letters A to N in its tokenizer, and in the questions.
"""

import json
import re
import shutil

from liteframe.toyworld.questions import all_questions
from liteframe.toyworld.scenes import COLOURS, DIRECTIONS, SHAPES, render, scene_for, write_video
from worlds import ROOT

WORDS = (*COLOURS, *SHAPES, *DIRECTIONS)
LETTER = dict(zip(WORDS, "ABCDEFGHIJKLMN", strict=True))


def write_lettered_vlm(folder):
    shutil.copytree(ROOT / "liteframe/toyworld/checkpoint", folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert not set(LETTER.values()) & set(vocabulary)
    tokenizer["model"]["vocab"] = {LETTER.get(word, word): number for word, number in vocabulary.items()}
    file.write_text(json.dumps(tokenizer))
    return folder


def write_lettered_questions(folder, videos, seed=7):
    """`videos` files with eleven questions each; returns the JSONL file."""
    folder.mkdir()
    rows = []
    for i in range(videos):
        scene = scene_for(seed, i)
        write_video(folder / f"{i}.mp4", render(scene))
        for n, question in enumerate(all_questions(scene)):
            text = re.sub(r"\w+", lambda word: LETTER.get(word[0], word[0]), question.text)
            row = {"id": f"{i}-{n}", "video": f"{i}.mp4", "question": text, "options": list(WORDS)}
            rows.append({**row, "answer": LETTER[question.answer], "category": question.kind})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
