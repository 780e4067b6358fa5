"""LMA with a clip summarizer: what is trained, saved and continued, and who may read with it."""

import json
import os
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from liteframe import StreamSession, memories
from liteframe.align.conversation_files import load_conversations
from liteframe.align.module import LMAModule
from liteframe.align.objectives.learned_clips import ClipTuning
from liteframe.cli.main import main
from liteframe.models.vlm.clip_summarizer import ClipSettings
from liteframe.models.vlm.load import load_processor, load_video_llm
from liteframe.models.vlm.summary_tokens import SummarySettings
from liteframe.models.vlm.trained_memory import TRAINED, part_of

CLIPS = {"layers": 1, "slots_per_clip": 1, "chosen": 1, "newest": 0, "kl_warmup": 0.5}


def weights(folder):
    """Of the LoRA layers, and of the summarizer."""
    files = ("adapter_model.safetensors", TRAINED["learned_clips"].weights)
    return tuple(load_file(folder / "adapter" / name) for name in files)


@pytest.fixture(scope="module")
def clips_world(lma_world):
    """The run of lma_world with a summarizer, on rows of which two say where their answer is to be seen."""
    rows = [json.loads(line) for line in (lma_world / "rows.jsonl").read_text().splitlines()]
    rows[0]["span"], rows[1]["span"] = [0.0, 0.2], [0.9, 1.0]
    (lma_world / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = yaml.safe_load((lma_world / "lma.yaml").read_text())
    settings["model"]["learned_clips"] = CLIPS
    settings["data"] |= {"conversations": str(lma_world / "spans.jsonl"), "batch_size": 4, "micro_batch_size": 2}
    (lma_world / "clips.yaml").write_text(yaml.safe_dump(settings))
    return lma_world


@pytest.fixture(scope="module")
def trained(clips_world, tmp_path_factory):
    """The folder of a finished run of two steps, of which the first learns where answers are seen and nothing else."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fit(patch, clips_world, folder)
    return folder


def fit(patch, world, folder, *more):
    import train_lma

    words = ["fit", "--config", world / "clips.yaml", "--run", folder, *more]
    patch.setattr("sys.argv", ["train_lma.py", *map(str, words)])
    train_lma.main()


def test_a_run_leaves_an_adapter_for_this_memory_alone(clips_world, trained, tmp_path, capsys):
    lora, summarizer = weights(trained)
    assert len(lora) == 2 * 28
    assert any(value.any() for name, value in lora.items() if "lora_B" in name)
    assert summarizer["residual.weight"].any()
    noted = json.loads((trained / "adapter" / "liteframe.json").read_text())
    report = json.loads((trained / "report.json").read_text())
    settings = {**CLIPS, "propagate": True, "temperature": 0.1, "kl_weight": 1.0, "train_lora": True}
    assert noted["memory"] == "learned_clips"
    assert noted["learned_clips"] == report["learned_clips"] == settings
    assert {"train/selection_kl", "train/selection_hits"} <= report["figures"].keys()
    parts = {"encoder": clips_world / "encoder", "adapter": trained / "adapter"}
    with pytest.raises(ValueError, match="was trained for memory 'learned_clips', not for plain prompts"):
        load_video_llm(clips_world / "vlm", **parts)
    with pytest.raises(ValueError, match=r"memory 'summary' needs .* was trained for memory 'learned_clips'"):
        load_video_llm(clips_world / "vlm", **parts, memory="summary")
    pair = load_video_llm(clips_world / "vlm", **parts, memory="learned_clips")
    for name, value in part_of(pair[0]).state_dict().items():
        assert torch.equal(value, summarizer[name])
    own = pair[0].model.language_model.layers[0].mlp.up_proj.weight
    assert not torch.allclose(part_of(pair[0]).reader.layers[0].mlp.up_proj.weight, own, atol=1e-3)
    session = StreamSession(*pair, memories["learned_clips"](64))
    assert (session.memory.slots_per_clip, session.memory.chosen, session.memory.newest) == (1, 1, 0)
    asked = ["stream", clips_world / "0.mp4", "--vlm", clips_world / "vlm", "--encoder", clips_world / "encoder"]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"time": 1.0, "question": "What colour?"}))
    asked += ["--adapter", trained / "adapter", "--questions", tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl"]
    assert main([*map(str, asked), "--memory", "learned_clips:64"]) == 0
    assert json.loads((tmp_path / "said.jsonl").read_text())["text"]
    assert main([*map(str, asked), "--memory", "clips:64"]) == 2
    assert "was trained for memory 'learned_clips'" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on_to_the_bit(clips_world, trained, tmp_path, monkeypatch):
    original = LMAModule.training_step

    def stopping(self, batch, batch_idx):
        if self.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LMAModule, "training_step", stopping)
        with pytest.raises(SystemExit):
            fit(patch, clips_world, tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    # The first step learns where answers are seen, and what the language model says of that is not learned.
    assert not any(value.any() for name, value in saved["state_dict"].items() if "lora_B" in name)
    fit(monkeypatch, clips_world, tmp_path / "run", "--resume")
    for one, other in zip(weights(tmp_path / "run"), weights(trained), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_does_not_fit_is_refused_before_the_run(clips_world, tmp_path):
    parts = {"vlm": str(clips_world / "vlm"), "encoder": str(clips_world / "encoder")}
    with pytest.raises(ValueError, match=r"model\.summary and model\.learned_clips: a run trains for one memory"):
        LMAModule(**parts, summary=SummarySettings(), learned_clips=ClipSettings())
    processor = load_processor(parts["vlm"], parts["encoder"])
    turns = [{"from": "human", "value": "What colour?"}, {"from": "gpt", "value": "red"}]

    def begin(settings=CLIPS, **row):
        (tmp_path / "0.mp4").touch()
        (tmp_path / "rows.jsonl").write_text(json.dumps({"conversations": turns, "video": "0.mp4", **row}))
        tuning = ClipTuning(ClipSettings(**settings), processor)
        tuning.begin(None, None, load_conversations(tmp_path / "rows.jsonl"))

    for span in ([1], [2, 1], [-1, 1], ["0", "1"], "0-1"):
        with pytest.raises(ValueError, match=r"number 1 of the conversations: 'span' is .* must be \[start, end\]"):
            begin(span=span)
    with pytest.raises(ValueError, match="number 1 of the conversations has 2 videos"):
        begin(videos=["0.mp4", "0.mp4"], video=None)
    with pytest.raises(ValueError, match=r"kl_warmup is 0\.5, and no conversation says where its answer is to be seen"):
        begin()
    tuning = ClipTuning(ClipSettings(slots_per_clip=50), processor)
    with pytest.raises(ValueError, match=r"slots_per_clip=50: a clip and two memories take 208 tokens, of 200"):
        tuning.room(200, [8], torch.device("cpu"))
    assert tuning.room(300, [8, 400], torch.device("cpu"))[:2] == ([20], 270)
