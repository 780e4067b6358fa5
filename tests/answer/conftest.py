"""Video LLMs of both families, with and without a LiteFrame encoder, and frames to ask them about."""

import numpy as np
import pytest
from worlds.students import make_student, student_config
from worlds.vlms import TRAINED, make_internvl, make_llava_onevision, make_qwen2_5_vl, make_qwen3_vl

from liteframe.models.vlm.load import load_video_llm

FAMILIES = ("internvl", "llava_onevision")
CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
KINDS = ("liteframe_internvl", "liteframe_llava_onevision", *FAMILIES)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """kind -> model and processor; a student takes 8 frames to a clip and 4 to a slot. Two count on three axes."""
    folder = tmp_path_factory.mktemp("vlms")
    half = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    encoders = {
        "internvl": make_student(student_config(), std=0.5),
        "llava_onevision": make_student(student_config(image_size=80, teacher_dim=32, **half), std=0.5),
    }
    pairs = {}
    for family, make in zip(FAMILIES, (make_internvl, make_llava_onevision), strict=True):
        source = make(folder / family)
        pairs[family] = load_video_llm(source)
        pairs[f"liteframe_{family}"] = load_video_llm(source, encoder=encoders[family])
    for family, make, looks in (("qwen2_5_vl", make_qwen2_5_vl, CLIP), ("qwen3_vl", make_qwen3_vl, half)):
        small = student_config(image_size=64, teacher_dim=32, depth=2, downsample={1: (2, 2, 2), 2: (2, 1, 1)}, **looks)
        source = make(folder / family, **({"deepstack": ()} if family == "qwen3_vl" else {}))
        pairs[f"liteframe_{family}"] = load_video_llm(source, encoder=make_student(small, std=0.5))
    return pairs


@pytest.fixture(scope="session")
def trained(loaded):
    """By memory, as loaded with what it reads with."""
    pairs = {kind: pair for kind, pair in loaded.items() if kind in KINDS[:2]}
    return {name: {kind: make(pair) for kind, pair in pairs.items()} for name, make in TRAINED.items()}


@pytest.fixture(params=KINDS)
def vlm(request, loaded):
    return loaded[request.param]


@pytest.fixture
def liteframe_vlm(loaded):
    return loaded["liteframe_internvl"]


@pytest.fixture(scope="session")
def video():
    """27 frames: three clips of 8 frames, and three frames that fill none."""
    return np.random.default_rng(0).integers(0, 256, (27, 48, 64, 3), dtype=np.uint8)
