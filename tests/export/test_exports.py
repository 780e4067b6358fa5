"""Encoder and Video LLM, exported, then used where liteframe cannot be imported."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from liteframe_export import hf_vlm
from liteframe_export.hf_vlm import export_vlm, save_vlm
from liteframe_export.provenance import Parts
from liteframe_export.reload_child import widened
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2
from transformers import AutoModel
from transformers.exporters import OnnxConfig, OnnxExporter
from worlds import ROOT
from worlds.ctd import write_video
from worlds.students import make_student, student_config
from worlds.vlms import answer_about

from liteframe.data.video.process import DecodeProcess
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.adapter import load_adapter, merge_adapter
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld.model import CHECKPOINT


@pytest.fixture(scope="module")
def videos():
    random = np.random.default_rng(5)
    return {
        name: torch.from_numpy(random.integers(0, 256, (frames, 97, 80, 3), dtype=np.uint8))
        for name, frames in (("long", 11), ("short", 1))
    }


@pytest.fixture(scope="module")
def stranger(world, exported_encoder, exported_vlm, videos, tmp_path_factory):
    """What tests/export/stranger.py found."""
    place = tmp_path_factory.mktemp("stranger")
    write_video(world.root / "a.mp4", frames=24, fps=8, seed=3)
    save_file(videos, place / "in.safetensors")
    process = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("stranger.py"), world.root, *_files(place)],
        cwd=place,
        env={**os.environ, "HF_MODULES_CACHE": str(place / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return load_file(place / "out.safetensors")


def _files(place):
    return place / "in.safetensors", place / "out.safetensors"


def test_exported_encoder_computes_what_the_encoder_computes(world, videos, stranger):
    encoder = LiteFrameEncoder.from_pretrained(world.cropping_encoder)
    config = encoder.config
    prepare = v2.Compose(
        [
            v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(64),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.image_mean, config.image_std),
        ]
    )
    with torch.no_grad():
        expected = encoder(prepare(videos["long"].permute(0, 3, 1, 2))[None])
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(stranger["features"], expected, atol=1e-5, rtol=0)


def test_transformers_own_onnx_exporter_takes_the_exported_encoder(world, exported_encoder):
    """A second road to ONNX, through transformers' and not our own tracing, in onnxruntime."""
    model = AutoModel.from_pretrained(exported_encoder, trust_remote_code=True).eval()
    video = torch.randn(2, 8, 3, 64, 48, generator=torch.Generator().manual_seed(3))
    graph = OnnxExporter().export(model, {"pixel_values_videos": video}, OnnxConfig(optimize=False))
    found = graph(pixel_values_videos=video).last_hidden_state
    with torch.inference_mode():
        expected = LiteFrameEncoder.from_pretrained(world.cropping_encoder)(video)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_exported_vlm_computes_what_the_model_with_its_adapter_computes(world, videos, stranger):
    model, processor = load_video_llm(world.vlm, encoder=world.encoder)
    prompt = "<|im_start|>user\n<video>\nand then <video>\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    batch = processor(text=prompt, videos=[videos["long"].numpy(), videos["short"].numpy()])
    with torch.no_grad():
        plain = model(**batch).logits
        adapted = load_adapter(model, world.run / "adapter").eval()
        expected = adapted(**batch).logits
        answer = adapted.generate(**batch, do_sample=False, max_new_tokens=12)
    assert (expected - plain).abs().max() > 0.1, "the adapter must matter, else merging it goes untested"
    torch.testing.assert_close(stranger["logits"], expected, atol=1e-4, rtol=0)
    assert stranger["answer"].tolist() == answer.tolist()
    assert torch.equal(stranger["logits_again"], stranger["logits"])
    torch.testing.assert_close(stranger["hidden"], stranger["hidden_of_whole"], atol=1e-5, rtol=0)


def test_the_code_in_the_cards_runs(stranger):
    said = {name: bytes(stranger[f"said.{name}"].tolist()).decode() for name in ("my-encoder.v1", "my-vlm")}
    # 20 frames in clips of 8: two tokens, two tokens, one token in time.
    assert said["my-encoder.v1"] == "(1, 5, 4, 4, 128)\n"
    assert said["my-vlm"].strip()


def test_pipelines_answer_about_a_file(world, stranger):
    model, processor = load_video_llm(world.vlm, encoder=world.encoder, adapter=world.run / "adapter")
    with DecodeProcess() as decoder:
        frames = decoder.read(world.root / "a.mp4", [2, 6, 10, 14, 18, 22])  # middles of six spans, as InternVL has it
    expected = answer_about(model, processor, frames, "Which colour?", max_new_tokens=8)
    assert expected
    for task in ("image-text-to-text", "any-to-any"):
        assert bytes(stranger[f"said.{task}"].tolist()).decode().strip() == expected


def test_an_export_ends_its_answer_with_its_turn_as_ask_does(tmp_path):
    """Toyworld's checkpoint with a generation_config that names another end, as published ones do."""
    vlm = shutil.copytree(CHECKPOINT, tmp_path / "vlm")
    settings = {"eos_token_id": 0, "do_sample": True, "temperature": 0.5, "repetition_penalty": 1.0}  # <|endoftext|>
    (vlm / "generation_config.json").write_text(json.dumps(settings))
    (tmp_path / "out").mkdir()
    save_vlm(*load_video_llm(vlm, encoder=make_student(student_config(), seed=1)), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"], written["temperature"]) == ([0, 3], 0, 0.5)
    model, processor = load_video_llm(tmp_path / "out")
    frames = np.random.default_rng(5).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    said = {}
    for name, (asked, its_processor) in {"export": (model, processor), "base": load_video_llm(vlm)}.items():
        expected = answer_about(asked, its_processor, frames, "What shape is the object?", max_new_tokens=12)
        video = frames if name == "export" else frames.transpose(0, 3, 1, 2)
        inputs = its_processor(text=question_prompt("What shape is the object?"), videos=[video], return_tensors="pt")
        ids = asked.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        said[name] = (processor.decode(ids, skip_special_tokens=True).strip(), expected)
    assert said["export"][0] == said["export"][1] != ""
    assert said["base"][0] != said["base"][1], "the base goes on, so that the test sees it"


def test_parity_reports_say_what_was_compared(exported_encoder, exported_vlm):
    for folder, limit in ((exported_encoder, 1e-5), (exported_vlm, 1e-4)):
        report = json.loads((folder / "parity.json").read_text())
        assert 0 <= report["max_abs_difference"] <= limit
        assert report["max_abs_difference"] == max(case["max_abs_difference"] for case in report["cases"])
        assert report["tolerance"] == 1e-4
        assert report["reloaded_with"]["torch"] == torch.__version__.split("+")[0]
    assert [case["frames"] for case in json.loads((exported_encoder / "parity.json").read_text())["cases"]] == [1, 5, 8]


def test_cards_tell_teacher_license_data_figures_and_command(exported_encoder, exported_vlm):
    encoder_card = (exported_encoder / "README.md").read_text()
    for fact in (
        'license: "cc-by-nc-4.0"',
        "| teacher | a tiny teacher |",
        "feed" * 16,
        "| data: videos | a folder \\| of videos |",
        "| val/cosine | 0.987654 |",
        "`python train_ctd.py fit --run 'a b'`",
        "trust_remote_code=True",
    ):
        assert fact in encoder_card, fact
    vlm_card = (exported_vlm / "README.md").read_text()
    for fact in ('license: "mit"', "a LoRA update merged", "| train/loss | 0.25 |", "| val/cosine | 0.987654 |"):
        assert fact in vlm_card, fact


def test_a_video_llm_names_the_file_that_mlx_vlm_imports(exported_vlm):
    file = json.loads((exported_vlm / "config.json").read_text())["model_file"]
    assert "from mlx_vlm.models.base import" in (exported_vlm / file).read_text()
    assert "liteframe" not in {line.split()[1].split(".")[0] for line in (exported_vlm / file).read_text().splitlines()
                               if line.startswith(("import ", "from "))}  # fmt: skip


def test_folders_have_the_license_of_their_code(exported_encoder, exported_vlm):
    """And name that of the weights; graphs: see test_graphs.py."""
    for folder in (exported_encoder, exported_vlm):
        assert (folder / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "`LICENSE` (Apache-2.0) is that of the Python files. It does not cover the weights" in card
        assert "The teacher's license (cc-by-nc-4.0) applies here too" in card
        assert "Its terms: no commercial use; whether a distilled student is derived" in card
    assert "The Video LLM's license (mit) applies here too" in (exported_vlm / "README.md").read_text(encoding="utf-8")


def test_only_finished_exports_are_left(world, exported_encoder, exported_vlm):
    assert not [path for path in world.root.iterdir() if "partial" in path.name]
    for folder in (exported_encoder, exported_vlm):
        assert (folder / "config.json").stat().st_mode == (folder / "model.safetensors").stat().st_mode
    names = {path.name for path in exported_vlm.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "generation_config.json",
    }
    assert "preprocessor_config.json" in {path.name for path in exported_encoder.iterdir()}


@pytest.mark.usefixtures("reload_in_forks")
def test_a_model_in_bfloat16_is_merged_in_float32_and_rounded_once(world, tmp_path):
    vlm, adapter = tmp_path / "vlm", tmp_path / "adapter"
    load_video_llm(world.vlm, dtype=torch.bfloat16)[0].save_pretrained(vlm)
    load_video_llm(world.vlm)[1].save_pretrained(vlm)
    shutil.copytree(world.run / "adapter", adapter)  # without the report, which names the float32 weights
    export_vlm(Parts(str(vlm), str(world.encoder), str(adapter)), tmp_path / "out")
    base, update = load_file(vlm / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    layer = "layers.1.mlp.down_proj"
    down, up = (update[f"base_model.model.model.language_model.{layer}.lora_{part}.weight"] for part in "AB")
    expected = base[f"language_model.model.{layer}.weight"].float() + (8 / 3) * (up @ down)
    assert torch.equal(found[f"model.language_model.{layer}.weight"], expected.bfloat16())
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["saved_dtype"] == "bfloat16"
    assert 1e-4 < parity["rounding_to_saved_dtype"] < parity["cases"][0]["largest_logit"] / 4


def test_a_merge_that_changes_more_than_rounding_is_refused(world, tmp_path, monkeypatch):
    """LoRA of 1.001 times its size; that of its own size moves the logits of a float32 model by rounding alone."""

    def merge(model):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data *= 1.001
        return merge_adapter(model)

    monkeypatch.setattr(hf_vlm, "merge_adapter", merge)
    with pytest.raises(
        ValueError, match=r"merged model differ by up to .* more than rounding does; nothing is written"
    ):
        export_vlm(Parts(str(world.vlm), str(world.encoder), str(world.run / "adapter")), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained = {"logits": torch.tensor([25.0, -3.0]), "answers": torch.tensor([[1, 2]])}
    hf_vlm.check_merge(trained, trained, 1.4e-4)  # found where each weight is moved by one rounding of its last digit
    with pytest.raises(ValueError, match="answers of the merged model"):
        hf_vlm.check_merge(trained, {**trained, "answers": torch.tensor([[1, 3]])}, 1.4e-4)


def test_layers_are_widened_one_at_a_time(world):
    """The result is that of a float32 model; the layers are bfloat16 again afterwards, also after an error."""
    stored, processor = load_video_llm(world.vlm, dtype=torch.bfloat16)
    exact = copy.deepcopy(stored).float()
    layers = stored.model.language_model.layers
    wide = []
    for module in layers.modules():
        module.register_forward_hook(
            lambda *_: wide.append(sum(p.dtype == torch.float32 for p in layers.parameters())), prepend=True
        )
    words = processor.tokenizer("Which way does the red circle move?", return_tensors="pt")["input_ids"]
    with torch.inference_mode(), widened(stored):
        assert torch.equal(stored(input_ids=words).logits, exact(input_ids=words).logits)
        with pytest.raises(RuntimeError):
            layers[0].mlp(torch.randn(3, 7))
    assert max(wide) == 2  # a projection's weight and bias
    assert {p.dtype for p in layers.parameters()} == {torch.bfloat16}
