"""benchmarks/lma_8b.py with a small model in place of the 8B one: the commands run, and its figures are theirs."""

import json
import runpy
import sys

import pytest
from safetensors import safe_open
from worlds import ROOT

from liteframe.bench.systems import internvl3_8b_config
from liteframe.cli.main import main
from liteframe.models.student.config import LiteFrameConfig


def small_config():
    config = internvl3_8b_config()
    for part in (config.vision_config, config.text_config):
        part.num_hidden_layers, part.hidden_size, part.intermediate_size, part.num_attention_heads = 1, 32, 48, 2
    config.text_config.layer_types = config.text_config.layer_types[:1]
    config.text_config.num_key_value_heads, config.text_config.vocab_size = 1, 600
    return config


def small_student():
    return LiteFrameConfig(dim=24, depth=12, heads=2, image_size=112, teacher_dim=32)


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import lma_8b

    monkeypatch.setattr(lma_8b, "internvl3_8b_config", small_config)
    monkeypatch.setattr(lma_8b, "LiteFrameConfig", small_student)
    return lma_8b


@pytest.fixture
def commands_here(benchmark, monkeypatch):
    """`plan` runs as a process, as all commands do; the others in this one, which has imported what they need."""
    in_a_process = benchmark.measured

    def measured(*words):
        if "plan" in words:
            return in_a_process(*words)
        if words[0] == "-m":
            assert words[1] == "liteframe"
            assert main(words[2:]) == 0
        else:
            monkeypatch.setattr(sys, "argv", list(words))
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
        return {"seconds": 1.0, "resident_gib": 1.0}

    monkeypatch.setattr(benchmark, "measured", measured)


@pytest.mark.usefixtures("reload_in_forks")
def test_it_measures_what_it_says(benchmark, commands_here, tmp_path):
    benchmark.main(["--frames", "8", "--work", str(tmp_path), "-o", str(tmp_path / "out")])
    record = json.loads((tmp_path / "out" / "lma_8b.json").read_text())
    (plan,) = record["plans"]
    assert plan["frames"] == 8
    assert plan["seconds_per_sample"] > 0
    assert 0.1 < plan["memory"]["measured_peak_bytes"] / 2**30 <= plan["resident_gib"] * 1.01
    assert [row["command"].split(",")[0] for row in record["commands"]] == [
        "train_lma.py fit", "liteframe ask", "liteframe export hf-vlm",
    ]  # fmt: skip
    export = record["commands"][-1]
    assert export["saved_dtype"] == "bfloat16"
    assert 0 <= export["max_abs_difference"] <= 1e-4 < export["largest_logit"]
    assert "| 8 |" in (tmp_path / "out" / "lma_8b.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_weights_are_bfloat16_and_usable(benchmark, tmp_path):
    inputs = benchmark.make_inputs(tmp_path, 4)
    with safe_open(inputs.vlm / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
    assert inputs.parameters == sum(weight.numel() for weight in weights.values())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert weights["language_model.model.norm.weight"].eq(1).all()
    assert weights["vision_tower.encoder.layer.0.lambda_1"].eq(weights["vision_tower.encoder.layer.0.lambda_2"]).all()
    assert 0.018 < weights["language_model.model.embed_tokens.weight"].std() < 0.022


def test_the_committed_table_is_of_the_true_size():
    record = json.loads((ROOT / "benchmarks/lma_8b.json").read_text())
    assert record["parameters"] == 7_944_373_760
    assert all(row["memory"]["measured_peak_bytes"] < 80 * 2**30 for row in record["plans"])
