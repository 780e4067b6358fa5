"""LMA with summary tokens: what is trained and saved, and who may read with the adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

from liteframe import StreamSession, memories
from liteframe.align.module import LMAModule
from liteframe.cli.eval import MODEL
from liteframe.cli.main import main
from liteframe.evaluate.settings import load_system
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.summary_tokens import SummarySettings, summary_tokens_of
from liteframe.models.vlm.trained_memory import TRAINED

QUESTION = "What colour is the circle?"
SUMMARY = ("--model.summary.segments", "1", "--model.summary.ratios", "[[2]]", "--model.summary.rank", "2")


def adapters(folder):
    """Weights of the LoRA layers and of the summary tokens."""
    return tuple(
        load_file(folder / "adapter" / name) for name in ("adapter_model.safetensors", TRAINED["summary"].weights)
    )


@pytest.fixture(scope="module")
def trained(lma_world, tmp_path_factory):
    """The folder of a finished run with summary tokens."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fit(patch, lma_world, folder)
    return folder


def fit(patch, world, folder, *more, summary=SUMMARY):
    import train_lma

    words = ["fit", "--config", world / "lma.yaml", "--run", folder, "--trainer.max_steps", 1, *summary, *more]
    patch.setattr("sys.argv", ["train_lma.py", *map(str, words)])
    train_lma.main()


def test_a_run_leaves_an_adapter_for_this_memory_alone(lma_world, trained, tmp_path, capsys):
    lora, tokens = adapters(trained)
    assert len(lora) == 2 * 28
    assert tokens.keys() == {"embedding"} | {
        f"updates.{layer}.{name}.{part}" for layer in range(4) for name in ("q_proj", "k_proj", "v_proj")
        for part in ("down", "up")
    }  # fmt: skip
    # All layers learn of them but the last one's queries, which no answer sees.
    moved = {name for name, value in tokens.items() if name.endswith("up") and value.any()}
    assert moved == {f"updates.{layer}.{name}.up" for layer in range(4) for name in ("q_proj", "k_proj", "v_proj")} - {
        "updates.3.q_proj.up"
    }
    noted = json.loads((trained / "adapter" / "liteframe.json").read_text())
    settings = {"rank": 2, "segments": 1, "ratios": [[2]], "labels": "keep", "train_lora": True}
    assert (noted["memory"], noted["summary"]) == ("summary", settings)
    assert json.loads((trained / "report.json").read_text())["summary"] == settings
    parts = {"encoder": lma_world / "encoder", "adapter": trained / "adapter"}
    with pytest.raises(ValueError, match=r"was trained for memory 'summary', not for plain prompts; give --memory"):
        load_video_llm(lma_world / "vlm", **parts)
    pair = load_video_llm(lma_world / "vlm", **parts, memory="summary")
    assert torch.equal(summary_tokens_of(pair[0]).embedding, tokens["embedding"])
    options = dict.fromkeys((*MODEL, "memory")) | {"vlm": lma_world / "vlm", **parts, "device": "cpu"}
    assert summary_tokens_of(load_system(options | {"memory": "summary:64"}).model) is not None
    with pytest.raises(ValueError, match=r"not for plain prompts; give --memory .* `eval --online`"):
        load_system(options | {"memory": "window:64"})
    session = StreamSession(*pair, memories["summary"](64))
    assert (session.memory.segments, session.memory.ratio) == (1, 2)

    def command(*words):
        code = main([str(word) for word in words])
        return code, capsys.readouterr().err

    asked = ("ask", lma_world / "0.mp4", QUESTION, "--vlm", lma_world / "vlm", "--encoder", lma_world / "encoder")
    asked = (*asked, "--max-new-tokens", 2, "--adapter", trained / "adapter")
    assert command(*asked, "--memory", "summary:64")[0] == 0
    for words in (asked, ("export", "hf-vlm", trained, tmp_path / "out")):
        code, told = command(*words)
        assert (code, "was trained for memory 'summary', not for plain prompts" in told) == (2, True)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_objective(lma_world, trained, tmp_path, monkeypatch):
    """A plain one is refused by the memory; a run with summary tokens goes on from both, plain LMA from its own."""
    fit(monkeypatch, lma_world, tmp_path / "plain", summary=())
    plain = tmp_path / "plain" / "adapter"
    with pytest.raises(ValueError, match=r"needs an adapter that was trained for it \(model\.summary .*plain prompts"):
        load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder", adapter=plain, memory="summary")
    with pytest.raises(ValueError, match="was trained for memory 'summary', not for plain prompts"):
        fit(monkeypatch, lma_world, tmp_path / "a", "--model.init_adapter", trained / "adapter", summary=())
    still = ("--model.optimizer.lr", "1.0e-30", "--model.summary.train_lora", "false")
    fit(monkeypatch, lma_world, tmp_path / "b", "--model.init_adapter", trained / "adapter", *still)
    for one, other in zip(adapters(tmp_path / "b"), adapters(trained), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    fit(monkeypatch, lma_world, tmp_path / "c", "--model.init_adapter", plain, "--model.summary.train_lora", "false")
    lora, tokens = adapters(tmp_path / "c")
    assert all(torch.equal(lora[name], value) for name, value in load_file(plain / "adapter_model.safetensors").items())
    assert tokens["updates.0.k_proj.up"].any()


def test_activations_that_are_computed_again_change_nothing(lma_world, trained, tmp_path, monkeypatch):
    fit(monkeypatch, lma_world, tmp_path / "run", "--model.gradient_checkpointing", "true")
    for one, other in zip(adapters(tmp_path / "run"), adapters(trained), strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-5)


def test_what_does_not_fit_is_refused_before_the_run(lma_world, tmp_path, monkeypatch):
    with pytest.raises(
        ValueError, match=r"take 11999 tokens, of 5192 that the language model reads beside 3000 summary"
    ):
        fit(monkeypatch, lma_world, tmp_path / "run", "--data.frames", "[4000]")
    parts = {"vlm": str(lma_world / "vlm"), "encoder": str(lma_world / "encoder")}
    with pytest.raises(ValueError, match="videos are encoded once, by a frozen encoder and projector"):
        LMAModule(**parts, summary=SummarySettings(), train_projector=True)
    with pytest.raises(ValueError, match="segments=17: a segment has 1 to 16 slots"):
        LMAModule(**parts, summary=SummarySettings(segments=17))
