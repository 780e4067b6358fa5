"""What an LMA run takes: the plan, the profile, and activations computed twice where the encoder is trained."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from worlds import ROOT
from worlds.students import make_student, student_config

import train_lma
from liteframe.cli.main import main
from liteframe.models.student.cost import cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.toyworld.questions import write_toyworld

ENCODER = student_config(depth=2)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Options of a run of a second; four videos of one conversation each."""
    folder = tmp_path_factory.mktemp("world")
    make_student(ENCODER).save_pretrained(folder / "encoder")
    rows = write_toyworld(folder / "toy", train=4, test=1, seed=3).train_rows
    made = [json.loads(line) | {"id": 7, "source": "toyworld"} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    return [
        "--config", str(ROOT / "configs" / "lma" / "toy.yaml"), "--data.conversations", str(rows),
        "--model.vlm", str(ROOT / "liteframe" / "toyworld" / "checkpoint"),
        "--model.encoder", str(folder / "encoder"), "--trainer.accelerator", "cpu", "--data.frames", "[8,16]",
        "--data.batch_size", "4", "--data.micro_batch_size", "2", "--data.cache_features", "false",
        "--trainer.max_steps", "2",
    ]  # fmt: skip


def train(words, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train_lma.py", "fit", *words, *map(str, arguments)])
    train_lma.main()


def test_plan(words, tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main(["plan", *words, "--trainer.devices", "2", "--trainer.max_epochs", "3", "--steps", "1",
                 "--trainer.max_steps", "50", "--json", str(path)]) == 0  # fmt: skip
    plan = json.loads(path.read_text())
    assert plan["data"]["keys_that_are_not_read"] == "source (4)"
    assert "keys of rows that are not read, and rows that have them: source (4)" in capsys.readouterr().err
    assert plan["steps"]["steps"] == 3
    assert (plan["steps"]["processes"], plan["steps"]["accumulated"]) == (2, 1)
    # rank 16 on q, k, v, o (128 wide, keys and values 64) and gate, up, down of four layers: counted by PEFT's rule
    config = json.loads((ROOT / "liteframe" / "toyworld" / "checkpoint" / "config.json").read_text())["text_config"]
    d, hidden = config["hidden_size"], config["intermediate_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = 16 * (2 * (d + d) + 2 * (d + kv) + 3 * (d + hidden))
    assert plan["model"]["trained_parameters"] == config["num_hidden_layers"] * layer
    assert plan["disk"]["adapter_bytes"] == 4 * plan["model"]["trained_parameters"]
    prices = [cost(ENCODER, frames) for frames in (8, 16)]
    encoder = sum(price.flops + price.attention_flops for price in prices) / 2
    assert plan["flops_of_a_sample"]["encoder_flops"] == pytest.approx(encoder)
    assert plan["time"]["hours"] == pytest.approx(3 * plan["warm_up"]["seconds_per_step"] / 3600)
    assert plan["warm_up"]["teacher_share"] == 0


def test_profile(words, tmp_path, monkeypatch, capsys):
    train(words, monkeypatch, "--run", tmp_path / "run", "--profile", 2)
    record = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert sum(part["share"] for part in record["parts"].values()) == pytest.approx(1, abs=0.01)
    assert {"data", "forward", "backward", "optimizer", "logging"} <= record["parts"].keys()
    assert "teacher" not in record["parts"]
    assert record["bottleneck"]["sentence"] in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"profile", "profile.json"}


def test_trained_encoder_with_activations_computed_twice(words, tmp_path, monkeypatch):
    blocks = []
    original = LiteFrameEncoder.checkpoint_activations
    monkeypatch.setattr(
        LiteFrameEncoder, "checkpoint_activations", lambda self: (blocks.append(len(self.blocks)), original(self))
    )
    for name, again in (("once", "false"), ("twice", "true")):
        train(words, monkeypatch, "--run", tmp_path / name, "--model.train_encoder", "true",
              "--model.gradient_checkpointing", again)  # fmt: skip
    assert blocks == [2]
    ours, theirs = (load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("twice", "once"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
