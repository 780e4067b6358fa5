"""A tiny InternVL with random weights, its processor, and a LiteFrame encoder that fits it."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from worlds.ctd import write_video
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl, stir

import train_lma
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer

QUESTION = "What colour is the circle?"


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def vlm(tokenizer):
    torch.manual_seed(0)
    vlm = build_model(tokenizer).eval()
    stir(vlm.model, 0.2, but=vlm.lm_head.weight)  # with small random weights it would only repeat its last token
    return vlm


@pytest.fixture
def encoder():
    return make_student(seed=1).eval()


@pytest.fixture
def model(vlm, encoder):
    return attach_encoder(vlm, encoder)


@pytest.fixture(scope="session")
def processor(tokenizer):
    base = build_processor(tokenizer)
    return LiteFrameInternVLProcessor(
        tokenizer, base.video_processor, chat_template=base.chat_template, pixels_per_token=32
    )


@pytest.fixture(scope="session")
def frames():
    def make(count, height=64, width=64, seed=0):
        return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)

    return make


@pytest.fixture(scope="session")
def prompt():
    return "<|im_start|>user\n<video>\nwhat colour is the circle?<|im_end|>\n<|im_start|>assistant\n"


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
