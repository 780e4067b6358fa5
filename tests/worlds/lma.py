"""A small Video LLM, an encoder for it and conversations about toyworld videos, for the tests of alignment."""

import json

from torch import nn

from liteframe.toyworld.questions import write_toyworld
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl


class Adapted(nn.Module):
    """A Video LLM as LMA holds it."""

    def __init__(self, model):
        super().__init__()
        self.vlm = model

    def get_base_model(self):
        return self.vlm

    def forward(self, **inputs):
        return self.vlm(**inputs)


def make_chats(folder, sharpness=1.0):
    """`vlm`, `encoder`, and in `toy` six videos with conversations of different lengths; returns the rows' file.

    Args:
        folder: an empty folder.
        sharpness: what the tied embeddings are multiplied by; as small as they start they make no confident logit.
    """
    make_internvl(folder / "vlm", std=None, sharpness=sharpness)
    make_student(student_config(depth=2)).save_pretrained(folder / "encoder")
    rows_file = write_toyworld(folder / "toy", train=6, test=1, seed=3).train_rows
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["conversations"] = row["conversations"][: 2 + 2 * (number % 4)]
    rows_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows_file
