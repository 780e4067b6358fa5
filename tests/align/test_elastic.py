"""LMA on an elastic encoder: each sample draws a mode; prompt, frames and features are those of the mode."""

import json

import pytest
import torch
from worlds.students import make_student, student_config

from liteframe import LiteFrameEncoder, load_video_llm
from liteframe.align.elastic import ElasticConversations, budgets_of
from liteframe.align.module import LMAModule
from liteframe.cli.main import main
from liteframe.models.student.elastic import standard_modes
from liteframe.models.vlm.load import load_processors

MODES = {name: strides for name, strides in standard_modes({1: (2, 2, 2), 2: (2, 1, 1)}).items() if name != "4x"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    make_student(student_config(dim=16, depth=2, mlp_dim=32, modes=MODES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("learned", ["lora", "projector"])
def test_a_run_draws_modes_and_its_adapter_serves_each(lma_world, encoder, run, tmp_path, monkeypatch, capsys, learned):
    """Features of each sample are those of the extracted encoder; 8 frames at 16x are 16 at 32x, of 10 there are."""
    seen = []
    videos = LMAModule._videos

    def watched(self, batch):
        inputs = videos(self, batch)
        if inputs:
            seen.append((batch, inputs["mm_encoder_outputs"]["video"].pooler_output))
        return inputs

    monkeypatch.setattr(LMAModule, "_videos", watched)
    words = ["fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "run", "--model.encoder", encoder]
    run(*words, "--trainer.max_steps", 6, *(["--model.train_projector", "true"] if learned == "projector" else []))
    assert "(drawn for each sample: 8x 4, 16x 8, 32x 16, 64x 32)" in capsys.readouterr().err
    modes = [mode for batch, _ in seen for mode in batch.modes]
    assert len(set(modes)) > 2
    whole = LiteFrameEncoder.from_pretrained(encoder)
    for batch, features in seen:
        for frames, mode, found in zip(batch.video_frames, batch.modes, features, strict=True):
            t, h, w = whole.config.windows[mode]
            assert frames == min(10, {"8x": 4, "16x": 8, "32x": 16, "64x": 32}[mode])
            assert len(found) == sum(-(-part // t) for part in [8] * (frames // 8) + [frames % 8]) * (64 // h // w // 4)
        assert sum(map(len, features)) == sum(batch.placeholders)
        if learned == "lora":
            model = load_video_llm(lma_world / "vlm", encoder=encoder, mode=batch.modes[0])[0]
            with torch.no_grad():
                expected = model.model.get_video_features(batch.pixels, batch.video_frames).pooler_output[0]
            torch.testing.assert_close(features[0], expected, rtol=1e-4, atol=1e-5)
    parts = {"encoder": encoder, "adapter": tmp_path / "run" / "adapter"}
    model, processor = load_video_llm(lma_world / "vlm", **parts, mode="32x")
    assert (processor.frames_per_slot, model.config.vision_config.modes) == (8, {})


def test_exports_of_a_run_take_one_mode(lma_world, encoder, tmp_path, capsys):
    for words in (["hf-encoder", encoder], ["onnx", encoder], ["torch", encoder],
                  ["hf-vlm", "--vlm", lma_world / "vlm", "--encoder", encoder]):  # fmt: skip
        assert main(["export", *map(str, words), str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert "the encoder is elastic, with modes 8x, 16x, 32x, 64x: name one with --mode" in said
        assert "liteframe extract" in said
    assert not (tmp_path / "out").exists()
    assert main(["export", "hf-encoder", str(encoder), str(tmp_path / "out"), "--mode", "32x"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["downsample"] == {"1": [2, 2, 2], "2": [4, 1, 1]}


def test_budgets_have_the_same_tokens_in_each_mode(lma_world, encoder):
    own, *others = load_processors(lma_world / "vlm", encoder).values()
    assert [budgets_of([128, 512], own, other) for other in others] == [[64, 256], [128, 512], [256, 1024], [512, 2048]]


def test_draws_are_a_function_of_the_key():
    modes = ElasticConversations(dict.fromkeys(MODES), seed=3)
    drawn = [modes.mode((epoch, index)) for epoch in range(20) for index in range(20)]
    assert drawn == [ElasticConversations(dict.fromkeys(MODES), 3).mode((e, i)) for e in range(20) for i in range(20)]
    assert all(60 < drawn.count(mode) < 140 for mode in MODES)  # of 400, a quarter each
    assert drawn != [ElasticConversations(dict.fromkeys(MODES), 4).mode((e, i)) for e in range(20) for i in range(20)]


def test_cached_features_are_refused(lma_world, encoder, run, tmp_path):
    with pytest.raises(ValueError, match=r"data.cache_features: with an elastic encoder.*liteframe extract"):
        run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "run", "--model.encoder", encoder,
            "--data.cache_features", "true")  # fmt: skip
