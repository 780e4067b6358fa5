"""Fixtures: a tiny InternVL with random weights, an encoder that fits it, the two together, and their processor."""

import numpy as np
import pytest
import torch

from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer
from worlds.students import make_student
from worlds.vlms import stir


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
