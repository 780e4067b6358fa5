"""LMA with a Q-Former: what is trained and saved, and who may read with the adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

from liteframe import StreamSession, memories
from liteframe.align.module import LMAModule
from liteframe.cli.main import main
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.qformer import QFormerSettings
from liteframe.models.vlm.trained_memory import TRAINED, part_of

FILES = ("adapter_model.safetensors", TRAINED["qformer"].weights)
SETTINGS = {"queries": 2, "layers": 1, "width": 32, "lengths": [1, 2], "train_lora": True}


@pytest.fixture
def fit(run, lma_world):
    def fit(folder, *more, **settings):
        words = [f"--model.qformer.{name}={json.dumps(value)}" for name, value in {**SETTINGS, **settings}.items()]
        run(
            "fit",
            "--config",
            lma_world / "lma.yaml",
            "--run",
            folder,
            *words,
            "--data.batch_size",
            4,
            "--trainer.max_steps",
            1,
            *more,
        )
        return [load_file(folder / "adapter" / name) for name in FILES]

    return fit


def test_a_run_leaves_an_adapter_for_this_memory_alone(fit, lma_world, tmp_path, capsys):
    lora, former = fit(tmp_path / "run", "--data.micro_batch_size", 2)  # one micro-batch has a text, too
    count = sum(value.numel() for value in former.values())
    assert f"qformer: {count:,} of these parameters; LoRA: trained" in (told := capsys.readouterr().err)
    assert "a video of 8 frames takes 9 of the 8,192 tokens" in told  # a label and two tokens
    adapter = tmp_path / "run" / "adapter"
    noted = json.loads((adapter / "liteframe.json").read_text())
    assert (noted["memory"], noted["qformer"]) == ("qformer", SETTINGS)
    parts = {"encoder": lma_world / "encoder", "adapter": adapter}
    with pytest.raises(ValueError, match=r"was trained for memory 'qformer', not for plain prompts; give --memory"):
        load_video_llm(lma_world / "vlm", **parts)
    model, processor = load_video_llm(lma_world / "vlm", **parts, memory="qformer")
    assert all(torch.equal(value, former[name]) for name, value in part_of(model).state_dict().items())
    session = StreamSession(model, processor, memories["qformer"](8))
    assert session.memory.settings() == {"budget": 8}
    asked = ["ask", lma_world / "0.mp4", "What?", "--vlm", lma_world / "vlm", "--encoder", lma_world / "encoder"]
    asked += ["--max-new-tokens", 2, "--adapter", adapter]
    assert main([str(word) for word in (*asked, "--memory", "qformer:64")]) == 0
    for words in (asked, ("export", "hf-vlm", tmp_path / "run", tmp_path / "out")):
        assert main([str(word) for word in words]) == 2
        assert "was trained for memory 'qformer', not for plain prompts" in capsys.readouterr().err
    # All of it has learned, and a run goes on from it; frozen LoRA stays.
    again = fit(tmp_path / "on", "--model.init_adapter", adapter, "--data.micro_batch_size", 4, train_lora=False)
    assert all(torch.equal(again[0][name], value) for name, value in lora.items())
    assert all(not torch.equal(again[1][name], value) for name, value in former.items())
    with pytest.raises(ValueError, match=r"q.*does not fit: .*use the same Video LLM and the same model\.qformer"):
        fit(tmp_path / "wide", "--model.init_adapter", adapter, width=64)


def test_what_does_not_go_together_is_refused(lma_world):
    parts = {"vlm": str(lma_world / "vlm"), "encoder": str(lma_world / "encoder"), "qformer": QFormerSettings()}
    with pytest.raises(ValueError, match=r"model\.qformer: videos are encoded once, by a frozen encoder"):
        LMAModule(**parts, train_projector=True)
    with pytest.raises(ValueError, match=r"model\.summary and model\.qformer: a run trains for one memory"):
        LMAModule(**parts, summary=TRAINED["summary"].settings())
