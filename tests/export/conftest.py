"""A tiny InternVL, an encoder, an adapter trained on the two, and their exports, each made once."""

import json
from types import SimpleNamespace

import pytest
import torch
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl

from liteframe.align.lora import LoraSettings, add_lora
from liteframe.cli.main import main
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.adapter import ORIGIN, origin
from liteframe.models.vlm.load import load_video_llm

REPORT = {
    "kind": "ctd",
    "teacher": {"name": "a tiny teacher", "sha256": "feed" * 16, "license": "cc-by-nc-4.0"},
    "data": {"videos": "a folder | of videos", "train_videos": 3},
    "figures": {"val/cosine": 0.98765432},
    "command": ["python", "train_ctd.py", "fit", "--run", "a b"],
    "versions": {"torch": "2.15.0"},
}


def make_encoder(folder, **changes):
    make_student(student_config(**changes), seed=1).save_pretrained(folder)
    return folder


def make_run(folder, vlm, encoder):
    model, _ = load_video_llm(vlm, encoder=encoder)
    recognized = origin(model)
    model = add_lora(model, LoraSettings(rank=3), train_projector=True)
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    parts = {"vlm": str(vlm), "encoder": str(encoder)}
    (folder / "adapter" / ORIGIN).write_text(json.dumps({**parts, **recognized}))
    (folder / "report.json").write_text(json.dumps({"kind": "lma", **parts, "figures": {"train/loss": 0.25}}))
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    vlm, encoder = make_internvl(root / "vlm"), make_encoder(root / "ctd" / "encoder")
    (vlm / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    # Trained on centre crops: more to get right than when frames are squashed, which the Video LLM's export covers.
    cropping = make_encoder(root / "ctd_crop" / "encoder", resize="crop")
    for run in ("ctd", "ctd_crop"):
        (root / run / "report.json").write_text(json.dumps(REPORT))
    run = make_run(root / "lma", vlm, encoder)
    return SimpleNamespace(root=root, vlm=vlm, encoder=encoder, cropping_encoder=cropping, run=run)


@pytest.fixture(scope="session")
def exported_encoder(world):
    out = world.root / "my-encoder.v1"
    assert main(["export", "hf-encoder", str(world.cropping_encoder), str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def exported_vlm(world):
    out = world.root / "my-vlm"
    assert main(["export", "hf-vlm", str(world.run), str(out)]) == 0
    return out


@pytest.fixture
def smallest(tmp_path):
    """Folder of the smallest encoder there is."""
    torch.manual_seed(0)
    config = LiteFrameConfig(
        dim=8, depth=1, heads=1, mlp_dim=8, patch_size=8, image_size=32, teacher_dim=8, downsample={1: (2, 2, 2)},
        clip_frames=4,
    )  # fmt: skip
    LiteFrameEncoder(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"
