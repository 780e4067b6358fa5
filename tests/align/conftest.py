"""A tiny InternVL with random weights, its processor, and a LiteFrame encoder that fits it."""

import numpy as np
import pytest
import torch

from liteframe.data.processor import LiteFrameInternVLProcessor
from liteframe.models.student import LiteFrameEncoder
from liteframe.models.student_config import LiteFrameConfig
from liteframe.models.video_llm import attach_encoder
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer

ENCODER = LiteFrameConfig(
    dim=24,
    depth=3,
    heads=2,
    patch_size=8,
    image_size=64,
    teacher_dim=128,
    downsample={1: (2, 2, 2), 2: (2, 1, 1)},
    clip_frames=8,
)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def vlm(tokenizer):
    torch.manual_seed(0)
    vlm = build_model(tokenizer).eval()
    for parameter in vlm.model.parameters():  # with small random weights a language model only repeats its last token
        if parameter.ndim == 2 and parameter is not vlm.lm_head.weight:
            torch.nn.init.normal_(parameter, std=0.2)
    return vlm


@pytest.fixture
def encoder():
    torch.manual_seed(1)
    encoder = LiteFrameEncoder(ENCODER).eval()
    for parameter in encoder.parameters():  # the temporal convolutions start at zero, where they would go untested
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


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
