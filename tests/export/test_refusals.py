"""Exports that must not be: each is refused with a reason, and leaves nothing behind."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from liteframe_export import hf_encoder, hf_vlm, verify
from liteframe_export.card import TRANSFORMERS
from liteframe_export.files import remove_left_behind, staged
from liteframe_export.hf_encoder import export_encoder, video_processor_dict
from liteframe_export.hf_vlm import export_vlm
from liteframe_export.provenance import Parts, parts_of_run
from liteframe_export.video_processor import LiteFrameAspectVideoProcessor, LiteFrameVideoProcessor
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import InternVLVideoProcessor

from liteframe.cli.main import main
from liteframe.data.preprocess import FrameTransform
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.vision import LiteFrameVisionModel


@pytest.fixture
def no_child(monkeypatch):
    """Fail if a refusal comes only after the reload."""

    def run(*_args, **_kwargs):
        raise AssertionError("the export went as far as the reload")

    monkeypatch.setattr(subprocess, "run", run)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_folder_is_not_touched(world, tmp_path, no_child):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="out exists"):
        export_encoder(world.encoder, out)
    (out / "mine").write_text("mine")
    with pytest.raises(ValueError, match="out exists"):
        export_vlm(parts_of_run(world.run), out)
    assert left(tmp_path) == ["out"]
    assert left(out) == ["mine"]


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    left_behind, running = tmp_path / "out.partial-1", tmp_path / "out.partial-2"
    for folder in (left_behind, running, tmp_path / "out2.partial-1"):
        folder.mkdir()
        (folder / "model.safetensors").write_text("half")
    mark = os.open(running, os.O_RDONLY)
    fcntl.flock(mark, fcntl.LOCK_EX)
    with staged(tmp_path / "out") as folder:
        assert sorted(tmp_path.iterdir()) == sorted([folder, running, tmp_path / "out2.partial-1"])
        with staged(tmp_path / "out3"):
            remove_left_behind(tmp_path / "out")
        assert folder.is_dir()  # it still runs
    os.close(mark)
    assert left(tmp_path) == ["out", "out.partial-2", "out2.partial-1", "out3"]


def test_a_full_disk_is_told_and_leaves_nothing(smallest, tmp_path, monkeypatch, capsys):
    def full(*_args, **_kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def full_too(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LiteFrameVisionModel, "save_pretrained", full)
    assert main(["export", "hf-encoder", str(smallest), str(tmp_path / "out")]) == 2
    assert "the weights cannot be written below" in capsys.readouterr().err
    monkeypatch.setattr(Path, "write_bytes", full_too)
    assert main(["export", "torch", str(smallest), str(tmp_path / "out")]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert left(tmp_path) == ["encoder"]


def test_a_folder_that_is_no_encoder_is_refused(world, tmp_path, no_child):
    with pytest.raises(ValueError, match="not a LiteFrame encoder"):
        export_encoder(world.vlm, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        export_encoder(world.run, tmp_path / "out")
    assert left(tmp_path) == []


def test_a_place_below_a_file_is_refused(world, tmp_path, no_child):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        export_encoder(world.encoder, tmp_path / "file" / "out")


def test_a_vlm_that_is_no_internvl_is_refused(world, tmp_path, no_child):
    with pytest.raises(ValueError, match="liteframe_vision"):
        export_vlm(Parts(str(world.encoder), str(world.encoder)), tmp_path / "out")
    with pytest.raises(ValueError, match="no-such-folder"):
        export_vlm(Parts(str(tmp_path / "no-such-folder"), str(world.encoder)), tmp_path / "out")
    assert left(tmp_path) == []


def test_a_vlm_without_all_its_weights_is_refused(world, tmp_path, no_child):
    damaged = tmp_path / "vlm"
    shutil.copytree(world.vlm, damaged)
    weights = load_file(damaged / "model.safetensors")
    lost = next(name for name in weights if "q_proj.weight" in name and "language_model" in name)
    del weights[lost]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="q_proj"):
        export_vlm(Parts(str(damaged), str(world.encoder)), tmp_path / "out")
    assert left(tmp_path) == ["vlm"]


def test_an_adapter_of_other_weights_is_refused(world, tmp_path, no_child):
    # Same shapes, one weight of the base changed: only the digest beside the adapter tells.
    other = tmp_path / "vlm"
    shutil.copytree(world.vlm, other)
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "gate_proj" in name)
    weights[name][0, 0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="was not trained on this model"):
        export_vlm(parts_of_run(world.run, vlm=str(other)), tmp_path / "out")
    assert left(tmp_path) == ["vlm"]


def test_an_adapter_of_another_shape_is_refused(world, tmp_path, no_child):
    for change, complaint in ((lambda t: t[:, :-1], "does not fit"), (None, "was not trained on")):
        adapter = tmp_path / "adapter"
        shutil.copytree(world.run / "adapter", adapter, dirs_exist_ok=True)
        weights = load_file(adapter / "adapter_model.safetensors")
        name = next(name for name in weights if "lora_A" in name)
        tensor = weights.pop(name)
        weights[name if change else name.replace("layers.0", "layers.9")] = change(tensor).clone() if change else tensor
        save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=complaint):
            export_vlm(Parts(str(world.vlm), str(world.encoder), str(adapter)), tmp_path / "out")
    assert left(tmp_path) == ["adapter"]


def test_a_pickled_adapter_is_refused(world, tmp_path, no_child):
    adapter = tmp_path / "adapter"
    shutil.copytree(world.run / "adapter", adapter)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        export_vlm(Parts(str(world.vlm), str(world.encoder), str(adapter)), tmp_path / "out")


def test_a_folder_that_is_no_lma_run_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match="not a finished LMA run"):
        parts_of_run(world.encoder.parent)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"report\.json:1: not JSON.*remove it to export without it"):
        parts_of_run(tmp_path)


@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_an_encoder_export_that_computes_something_else_is_not_written(world, tmp_path, monkeypatch, value):
    encoder = LiteFrameEncoder.from_pretrained(world.encoder)

    def reload(folder, kind, videos, **_job):
        transform = FrameTransform(64, encoder.config.image_mean, encoder.config.image_std)
        outputs = {}
        for number, frames in enumerate(videos):
            outputs[f"pixels.{number}"] = transform(frames)[None]
            with torch.no_grad():
                outputs[f"features.{number}"] = encoder(outputs[f"pixels.{number}"])
        outputs["features.2"][0, 0, 1, 1, 3] += value
        return verify.Reloaded(outputs, {})

    monkeypatch.setattr(hf_encoder.verify, "reload", reload)
    with pytest.raises(ValueError, match="features of the reloaded export differ"):
        export_encoder(world.encoder, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize(("name", "complaint"), [("logits", "logits of the reloaded"), ("answers", "answers of the")])
def test_a_vlm_export_that_computes_something_else_is_not_written(world, tmp_path, monkeypatch, name, complaint):
    computed = []

    def ask(*args):
        computed.append(reload_child_ask(*args))
        return computed[-1]

    def reload(folder, kind, videos, **_job):
        outputs = {key: tensor.clone() for key, tensor in computed[-1].items()}
        outputs[name][0, -1] += 1
        return verify.Reloaded(outputs, {})

    reload_child_ask = hf_vlm.ask
    monkeypatch.setattr(hf_vlm, "ask", ask)
    monkeypatch.setattr(hf_vlm.verify, "reload", reload)
    with pytest.raises(ValueError, match=complaint):
        export_vlm(parts_of_run(world.run), tmp_path / "out")
    assert left(tmp_path) == []


def test_a_reload_that_fails_says_why(world, tmp_path, monkeypatch):
    def run(*_args, **_kwargs):
        return subprocess.CompletedProcess([], 1, "", "Traceback\nModuleNotFoundError: No module named 'liteframe'")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ValueError, match="No module named 'liteframe'"):
        export_encoder(world.encoder, tmp_path / "out")
    assert left(tmp_path) == []


@pytest.mark.parametrize("resize", ["squash", "crop", "aspect"])
@pytest.mark.parametrize("shape", [(90, 64), (64, 97), (48, 40), (360, 641), (64, 64)])
def test_exported_preprocessing_is_that_of_training(tmp_path, resize, shape):
    config = LiteFrameConfig(image_size=112, image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6), resize=resize)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(video_processor_dict(config)))
    frames = torch.randint(0, 256, (3, *shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kinds = {"crop": LiteFrameVideoProcessor, "aspect": LiteFrameAspectVideoProcessor}
    found = kinds.get(resize, InternVLVideoProcessor).from_pretrained(tmp_path)(
        videos=[frames.numpy()], return_tensors="pt"
    )
    expected = FrameTransform(112, config.image_mean, config.image_std, resize, config.pixel_multiple)(frames)
    torch.testing.assert_close(found["pixel_values_videos"][0], expected, atol=1e-6, rtol=0)


def test_command_line_refuses_what_it_cannot_mean(world, tmp_path, capsys):
    out = str(tmp_path / "out")
    for arguments, complaint in (
        (["hf-vlm", out], "--vlm and --encoder"),
        (["hf-vlm", "a", "b", out], "got 3 folders"),
        (["hf-vlm", str(world.run), out, "--adapter", "x"], "leave out --adapter"),
        (["hf-encoder", str(world.vlm), out], "not a LiteFrame encoder"),
    ):
        assert main(["export", *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert left(tmp_path) == []


def test_cards_ask_for_the_transformers_that_the_library_needs(request):
    text = (request.config.rootpath / "setup.cfg").read_text().replace(", ", ",")
    assert f"transformers {TRANSFORMERS}" in text
