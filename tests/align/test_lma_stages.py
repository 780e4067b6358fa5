"""Going on from an adapter, learning rates by part, and stages in a file."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import InternVLConfig, InternVLForConditionalGeneration
from worlds import ROOT

from liteframe.align.command import load_stages
from liteframe.align.module import LMAModule
from liteframe.cli.main import main
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.adapter import load_adapter
from liteframe.models.vlm.attach import with_encoder
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

QUESTION = "What colour is the circle?"


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def trained(lma_world, run):
    """The folder of a finished run of lma.yaml, made once; nothing is written into it."""
    folder = lma_world / "trained"
    if not (folder / "report.json").exists():
        run("fit", "--config", lma_world / "lma.yaml", "--run", folder)
    return folder


def test_an_encoder_learns_at_a_fifth_and_text_alone_keeps_it_in_the_step(lma_world, run, tmp_path, monkeypatch):
    rates = {}
    original = LMAModule.configure_optimizers

    def spy(self):
        made = original(self)
        names = {id(p): name for name, p in self.named_parameters()}
        for group in made["optimizer"].param_groups:
            for parameter in group["params"]:
                rates[names[id(parameter)]] = group["initial_lr"]
        return made

    monkeypatch.setattr(LMAModule, "configure_optimizers", spy)
    trained = ["--model.train_encoder", "true", "--model.train_projector", "true"]
    run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "run", *trained)
    found = {
        part: {rate for name, rate in rates.items() if part in name} for part in ("vision_tower", "projector", "lora")
    }
    assert found == {"vision_tower": {0.002}, "projector": {0.01}, "lora": {0.01}}


@pytest.mark.usefixtures("reload_in_forks")
def test_going_on_from_an_adapter(lma_world, run, tmp_path):
    run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "a", "--model.train_projector", "true")
    first = adapter(tmp_path / "a")
    still = ["--model.optimizer.lr", "1.0e-30", "--model.init_adapter", tmp_path / "a" / "adapter"]
    run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "b", *still)
    # Nothing moved: the LoRA layers are those of the first run, and its projector is kept although it is frozen now.
    second = adapter(tmp_path / "b")
    assert first.keys() == second.keys()
    assert any("multi_modal_projector" in name for name in second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, msg=name)
    assert json.loads((tmp_path / "b" / "report.json").read_text())["init_adapter"] == str(tmp_path / "a" / "adapter")
    assert main(["export", "hf-vlm", str(tmp_path / "b"), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ["--model.lora.rank", "3", "--model.lora.alpha", "5"],
            r"lora\.alpha is 4.0 there and 5.0 here; lora\.rank is 2",
        ),
        (["--model.init_adapter", "nowhere"], "not an adapter folder"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(lma_world, trained, run, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        run(
            "fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "run",
            "--model.init_adapter", trained / "adapter", *change,
        )  # fmt: skip


def test_an_adapter_of_another_model_is_refused(lma_world, trained, run, tmp_path, capsys):
    saved, video = trained / "adapter", str(lma_world / "0.mp4")

    def ask(vlm, *encoder):
        words = ["ask", video, QUESTION, "--vlm", vlm, "--adapter", saved, *encoder, "--max-new-tokens", 1]
        code = main(list(map(str, words)))
        return code, capsys.readouterr().err

    own = ("--encoder", lma_world / "encoder")
    assert ask(lma_world / "vlm", *own)[0] == 0
    # The encoder forgotten, another encoder, another language model of the same shape.
    drift = LiteFrameEncoder.from_pretrained(lma_world / "encoder")
    torch.nn.init.normal_(drift.head.weight)
    drift.save_pretrained(tmp_path / "drift")
    model, processor = load_video_llm(lma_world / "vlm")
    torch.nn.init.normal_(model.model.language_model.norm.weight)
    model.save_pretrained(tmp_path / "tuned")
    processor.save_pretrained(tmp_path / "tuned")
    for words in (
        (lma_world / "vlm",),
        (lma_world / "vlm", "--encoder", tmp_path / "drift"),
        (tmp_path / "tuned", *own),
    ):
        code, told = ask(*words)
        assert code == 2
        assert f"but on {lma_world / 'vlm'} with the encoder {lma_world / 'encoder'}" in told
    rounded, _ = load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder", dtype=torch.float16)
    assert load_adapter(rounded, saved).dtype == torch.float16
    again = ["--model.init_adapter", saved, "--model.encoder", tmp_path / "drift"]
    with pytest.raises(ValueError, match="was not trained on this model"):
        run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "b", *again)


@pytest.mark.parametrize("layers", [3, 5])
def test_an_adapter_of_another_depth_is_refused(lma_world, trained, tmp_path, layers):
    shutil.copytree(
        trained / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("liteframe.json")
    )  # PEFT's
    config = InternVLConfig.from_pretrained(lma_world / "vlm")
    config.text_config.num_hidden_layers, config.text_config.layer_types = layers, ["full_attention"] * layers
    model = with_encoder(InternVLForConditionalGeneration(config), lma_world / "encoder")
    with pytest.raises(ValueError, match=r"does not fit: (unexpected|missing) .*layers\.[34]\."):
        load_adapter(model, tmp_path / "adapter")


@pytest.mark.usefixtures("reload_in_forks")
def test_stages_chain_and_finished_ones_are_not_repeated(lma_world, run, tmp_path, capsys):
    stages = [
        {"name": "projector", "model": {"train_projector": True}, "trainer": {"max_steps": 1}},
        {"name": "all", "model": {"train_encoder": True}},
    ]
    file = lma_world / "stages.yaml"
    file.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "config": "lma.yaml", "stages": stages}))
    run("stages", "--config", file)
    first, second = adapter(tmp_path / "run" / "1_projector"), adapter(tmp_path / "run" / "2_all")
    assert {name.split(".")[3] for name in second} >= {"vision_tower", "multi_modal_projector"}
    projector = {name: tensor for name, tensor in first.items() if "multi_modal_projector" in name}
    assert projector
    for name, tensor in projector.items():  # frozen in the second stage, and still what the first one made of it
        assert torch.equal(second[name], tensor), name
    made = (tmp_path / "run" / "2_all" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    run("stages", "--config", file)
    assert "stage 1_projector is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "2_all" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == made
    changed = [{**stages[0], "trainer": {"max_steps": 3}}, stages[1]]
    other = lma_world / "longer.yaml"
    other.write_text(yaml.safe_dump({"run": str(tmp_path / "run"), "config": "lma.yaml", "stages": changed}))
    with pytest.raises(SystemExit):
        run("stages", "--config", other)
    assert "stage 1_projector is finished, with" in capsys.readouterr().err
    # One adapter on the original parts gives what the exported folder gives.
    assert main(["export", "hf-vlm", str(tmp_path / "run" / "2_all"), str(tmp_path / "out")]) == 0
    model, processor = load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder")
    adapted = load_adapter(model, tmp_path / "run" / "2_all" / "adapter").eval()
    inputs = processor(text=question_prompt(QUESTION), videos=[torch.full((5, 64, 64, 3), 90, dtype=torch.uint8)])
    exported, _ = load_video_llm(tmp_path / "out")
    with torch.inference_mode():
        assert (adapted(**inputs).logits - exported(**inputs).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"run": "a", "stages": []}, "must have the keys"),
        ({"run": "a", "config": "none.yaml", "stages": [{"name": "a"}]}, "does not exist"),
        ({"run": "a", "config": "lma.yaml", "stages": []}, "at least one stage"),
        ({"run": "a", "config": "lma.yaml", "stages": [{"name": "../a"}]}, "needs a name"),
    ],
)
def test_bad_files_of_stages(lma_world, content, message):
    path = lma_world / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        load_stages(path)


def test_the_shipped_stages_run(lma_world, run, tmp_path):
    small = [
        "--model.vlm", lma_world / "vlm", "--model.encoder", lma_world / "encoder", "--data.workers", "0",
        "--data.conversations", lma_world / "rows.jsonl", "--data.frames", "[8]", "--data.batch_size", "2",
        "--trainer.max_steps", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    for path in sorted((ROOT / "configs/lma/stages").glob("*.yaml")):
        run("stages", "--config", path, "--run", tmp_path / path.stem, *small)
        last = sorted((tmp_path / path.stem).glob("*/report.json"))[-1]
        assert json.loads(last.read_text())["init_adapter"]
        assert f"train_lma.py stages --config configs/lma/stages/{path.name}" in path.read_text()
