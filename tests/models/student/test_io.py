"""save_pretrained and from_pretrained: exact round trip, and an error with a name for each kind of damage."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from liteframe import LiteFrameConfig, LiteFrameEncoder

CONFIG = LiteFrameConfig(
    dim=16, depth=2, heads=2, patch_size=4, image_size=16, teacher_dim=8, downsample={1: (2, 2, 2)}, clip_frames=4
)


@pytest.fixture
def folder(tmp_path):
    LiteFrameEncoder(CONFIG).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_round_trip_is_exact(tmp_path):
    encoder = LiteFrameEncoder(CONFIG)
    encoder.save_pretrained(tmp_path)
    again = LiteFrameEncoder.from_pretrained(tmp_path)
    assert again.config == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), encoder.parameters(), strict=True))
    assert all(p.requires_grad for p in again.parameters())
    video = torch.randn(1, 4, 3, 16, 16)
    assert torch.equal(again(video), encoder(video))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def test_loaded_weights_do_not_follow_the_file(folder, tmp_path):
    loaded = LiteFrameEncoder.from_pretrained(folder)
    before = loaded.head.weight.clone()
    LiteFrameEncoder(CONFIG).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    assert torch.equal(loaded.head.weight, before)


def test_dtype_survives(tmp_path):
    LiteFrameEncoder(CONFIG).bfloat16().save_pretrained(tmp_path)
    assert next(LiteFrameEncoder.from_pretrained(tmp_path).parameters()).dtype == torch.bfloat16


def test_files_say_what_others_look_for(folder):
    assert json.loads((folder / "config.json").read_text())["model_type"] == "liteframe_vision"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["size"] == {"height": 16, "width": 16}
    assert processor["image_mean"] == list(CONFIG.image_mean)
    assert processor["image_std"] == list(CONFIG.image_std)
    assert processor["resize"] == "squash"
    # Others in the group must be able to read what umask lets them read.
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_saving_again_replaces_and_a_failure_leaves_the_old_file(folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr("liteframe.models.student.io.save", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        LiteFrameEncoder(CONFIG).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    monkeypatch.undo()
    LiteFrameEncoder(CONFIG).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() != before


def test_missing_folder_and_files(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"nowhere/config.json does not exist"):
        LiteFrameEncoder.from_pretrained(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist"):
        LiteFrameEncoder.from_pretrained(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        LiteFrameEncoder.from_pretrained(folder)


def test_pickle_is_not_opened(folder):
    torch.save({"head.bias": torch.zeros(8)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        LiteFrameEncoder.from_pretrained(folder)


def test_wrong_weights_are_named(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["extra"] = weights.pop("head.bias")
    weights["head.weight"] = torch.zeros(9, 16)
    save_file(weights, path)
    with pytest.raises(
        ValueError, match=r"missing head.bias; unexpected extra; head.weight has shape \[9, 16\].* \[8, 16\]"
    ):
        LiteFrameEncoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "does not hold a JSON object"),
        ("{}", "has no model_type"),
        ('{"model_type": "internvl"}', "'internvl'"),
        ('{"model_type": "liteframe_vision", "dim": "wide"}', "dim must be an integer"),
    ],
)
def test_bad_config(folder, text, words):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json.*{words}"):
        LiteFrameEncoder.from_pretrained(folder)
