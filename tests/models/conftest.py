"""Tiny random models that the tests of this room share."""

import json

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


@torch.no_grad()
def scramble(model, seed=0):
    """Give every weight a random value, so that no zero or one of an initialisation hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def make_vlm(**vision):
    """A random InternVL: ViT of 32 channels, 4 heads, 3 blocks on 4x4 patches."""
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": [32, 32],
        "patch_size": [8, 8],
        "attention_bias": True,
        **vision,
    }
    text = {
        "model_type": "qwen2",
        "vocab_size": 100,
        "hidden_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    model = InternVLForConditionalGeneration(InternVLConfig(vision_config=shape, text_config=text))
    scramble(model)
    return model.eval()


def save_with_processor(model, folder):
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
    return folder


@pytest.fixture(scope="session")
def vlm():
    return make_vlm()


@pytest.fixture(scope="session")
def vlm_folder(vlm, tmp_path_factory):
    return save_with_processor(vlm, tmp_path_factory.mktemp("vlm"))


@pytest.fixture
def make(request):
    """The builders above, for tests that need their own shapes."""
    return type("Make", (), {"vlm": staticmethod(make_vlm), "save": staticmethod(save_with_processor),
                             "scramble": staticmethod(scramble)})  # fmt: skip
