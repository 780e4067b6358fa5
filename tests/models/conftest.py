"""Tiny random models that the tests of this room share."""

import json

import pytest
import torch
from worlds.vlms import random_internvl

STATISTICS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


@torch.no_grad()
def scramble(model, seed=0):
    """Give every weight a random value, so that no zero or one of an initialization hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def make_vlm(**vision):
    model = random_internvl(**vision)
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
