"""A small world for runs of LMA, and the tiny Video LLM of worlds/tiny_vlm.py."""

import json
import sys

import pytest
import torch
import yaml
from worlds.ctd import write_video
from worlds.students import student_config
from worlds.tiny_vlm import encoder, frames, model, processor, prompt, tokenizer, vlm  # noqa: F401  # fixtures
from worlds.vlms import make_internvl

import train_lma
from liteframe.models.student.encoder import LiteFrameEncoder

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="session")
def lma_world(tmp_path_factory):
    """A small InternVL, an encoder, three videos and a text, and the YAML of a run of two steps on them."""
    folder = tmp_path_factory.mktemp("stages")
    make_internvl(folder / "vlm")
    torch.manual_seed(1)
    LiteFrameEncoder(student_config(dim=16, depth=2, mlp_dim=32)).save_pretrained(folder / "encoder")
    rows = []
    for number, word in enumerate(("red", "blue", "green")):
        write_video(folder / f"{number}.mp4", frames=10, fps=8, seed=number)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": word}]
        rows.append({"video": f"{number}.mp4", "conversations": turns})
    rows.append({"conversations": [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "red"}]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "seed_everything": 0,
        "run": str(folder / "unused"),
        "model": {
            "vlm": str(folder / "vlm"),
            "encoder": str(folder / "encoder"),
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.0},
            "optimizer": {"lr": 0.01, "warmup_steps": 0, "weight_decay": 0.0},
        },
        "data": {
            "conversations": str(folder / "rows.jsonl"), "frames": [8], "fps": [8.0, 8.0], "batch_size": 2,
            "micro_batch_size": 1, "workers": 0,
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu"},
    }  # fmt: skip
    (folder / "lma.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def run(monkeypatch):
    """Run train_lma.py."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_lma.py", *map(str, arguments)])
        train_lma.main()

    return run
