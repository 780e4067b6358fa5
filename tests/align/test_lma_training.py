"""train_lma.py through its own entry point: each YAML, the loss under accumulation, resume, bad videos, adapter."""

import hashlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from worlds.lma import make_chats

import train_lma
from liteframe.align.batch import FeatureCache
from liteframe.align.callbacks import AdapterSaver
from liteframe.align.conversation_files import load_conversations
from liteframe.align.module import LMAModule
from liteframe.data.stream import ClipStream
from liteframe.data.video.reader import read_frames
from liteframe.data.video.sampling import at_fps
from liteframe.data.video.timeline import Timeline
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.adapter import load_adapter
from liteframe.models.vlm.chat import encode_conversation
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.trained_memory import TRAINED

CONFIGS = Path(__file__).parents[2] / "configs" / "lma"
SMALL = ["--data.frames", "[8,12]", "--data.workers", "0", "--data.micro_batch_size", "2", "--data.batch_size", "4"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random tiny InternVL, an encoder for it, and six videos with conversations of different lengths."""
    folder = tmp_path_factory.mktemp("world")
    make_chats(folder, sharpness=10)
    return folder


@pytest.fixture
def train(world, monkeypatch):
    def run(run_folder, *arguments, config="internvl3_8b", rows=None):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "train_lma.py", "fit", "--config", str(CONFIGS / f"{config}.yaml"), "--run", str(run_folder),
                "--model.vlm", str(world / "vlm"), "--model.encoder", str(world / "encoder"),
                "--data.conversations", str(rows or world / "toy" / "train.jsonl"),
                "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", *arguments,
            ],
        )  # fmt: skip
        train_lma.main()

    return run


def report(folder):
    return json.loads((folder / "report.json").read_text())


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def folder_hash(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_runs(train, world, tmp_path, capsys, config):
    before = folder_hash(world / "vlm"), folder_hash(world / "encoder")
    memory = next((name for name in TRAINED if config.endswith(f"_{name}")), None)
    new = ["--model.init_adapter", "null"] if memory else []
    train(tmp_path / "run", *SMALL, *new, config=config)
    shown = capsys.readouterr().err
    assert "LoRA on 28 layers of the language model" in shown
    assert "projector: frozen; encoder: frozen" in shown
    assert "step 2/2" in shown
    assert {"config.yaml", "report.json", "adapter", "checkpoints"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert any((tmp_path / "run").glob("events.out.tfevents.*"))
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    of_memory = {name for name in saved if memory and f".{TRAINED[memory].part}." in name}
    # Of summaries, an embedding and updates of q, k and v; of clips, two layers of 12 tensors, a norm, and three more;
    # of a Q-Former, queries, two norms and a linear layer, and two layers of 20 tensors.
    counts = {None: 0, "summary": 1 + 2 * 3 * 4, "learned_clips": 2 * 12 + 1 + 3, "qformer": 1 + 3 * 2 + 2 * 20}
    assert len(of_memory) == counts[memory]
    assert all(".lora_" in name for name in saved.keys() - of_memory)
    assert len(saved.keys() - of_memory) == 2 * 28
    assert all(".language_model." in name for name in adapter(tmp_path / "run"))
    figures = report(tmp_path / "run")
    assert figures["steps"] == 2
    assert figures["lora_layers"] == 28
    assert figures["data"]["clips_read"] == 8
    assert (folder_hash(world / "vlm"), folder_hash(world / "encoder")) == before


def exact(*arguments):
    fixed = ["--data.fps", "[8,8]", "--data.frames", "[8]", "--data.workers", "0", "--data.batch_size", "8"]
    return [*fixed, "--model.lora.dropout", "0", "--trainer.gradient_clip_val", "null", *arguments]


def test_the_loss_is_the_mean_over_the_answer_tokens_of_the_global_batch(train, world, tmp_path):
    figures = {}
    for micro in (8, 4, 1):
        folder = tmp_path / str(micro)
        train(folder, *exact("--data.micro_batch_size", str(micro), "--trainer.max_steps", "1"))
        figures[micro] = report(folder)["figures"]
    model, processor = load_video_llm(world / "vlm", encoder=world / "encoder")
    losses = []
    order = [index for _, index in _first_batch(8, rows=6)]
    conversations = load_conversations(world / "toy" / "train.jsonl")
    for index in order:
        conversation = conversations[index]
        indices = at_fps(Timeline.constant_rate(64, 8), target_fps=8, max_frames=8)
        frames = read_frames(conversation.media[0].files[0], indices)
        video = processor.video_text(processor.slots(8, 64, 64))
        ids, labels = encode_conversation(conversation.turns, [video], processor.tokenizer)
        with torch.no_grad():
            pixels = processor.pixels(frames)
            logits = model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels).logits[0].double()
        losses += [
            -logits[place - 1].log_softmax(-1)[label].item() for place, label in enumerate(labels) if label != -100
        ]
    assert len({len(c.turns) for c in conversations}) > 1  # otherwise a mean of means would pass
    for micro in figures:
        assert figures[micro]["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
        assert figures[micro]["train/gradient_norm"] == pytest.approx(figures[8]["train/gradient_norm"], rel=1e-4)


def _first_batch(size, rows):
    return ClipStream(rows, size, 1, seed=0).batch(0)


def test_gradients_do_not_depend_on_how_the_batch_is_cut(train, tmp_path, monkeypatch):
    seen = {}
    original = LMAModule.configure_gradient_clipping

    def spy(self, *args, **kwargs):
        original(self, *args, **kwargs)
        seen[self.data().micro_batch_size] = {
            name: p.grad.clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    monkeypatch.setattr(LMAModule, "configure_gradient_clipping", spy)
    for micro in (8, 2):
        train(tmp_path / str(micro), *exact("--data.micro_batch_size", str(micro), "--trainer.max_steps", "1"))
    moved = [name for name, grad in seen[8].items() if grad.abs().max() > 0]
    assert len(moved) == 28  # lora_B starts at zero, so only it has gradients
    for name in moved:
        torch.testing.assert_close(seen[2][name], seen[8][name], rtol=1e-3, atol=1e-6)


def test_resume_after_a_signal_gives_the_same_adapter(train, tmp_path, monkeypatch):
    settings = [*SMALL, "--trainer.max_steps", "4", "--model.lora.dropout", "0.3", "--model.optimizer.lr", "0.01"]
    train(tmp_path / "whole", *settings)
    original = LMAModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LMAModule, "training_step", interrupted)
        with pytest.raises(SystemExit) as stopped:
            train(tmp_path / "cut", *settings)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "cut" / "adapter").exists()
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < saved["global_step"] < 4
    held = saved["contents"] | saved["ChatDataModule"]["contents"]
    assert held.keys() == {"model.vlm, model.encoder", "model.init_adapter", "data.conversations", "data.tokens"}
    # What is left out is the run's own: dropout, steps and rate too, which are not the configuration's.
    monkeypatch.setattr(sys, "argv", ["train_lma.py", "fit", "--run", str(tmp_path / "cut"), "--resume"])
    train_lma.main()
    whole, cut = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert report(tmp_path / "cut")["data"]["clips_read"] == 16


def test_a_disk_too_full_for_the_adapter_loses_nothing(train, tmp_path, monkeypatch):
    original = AdapterSaver.on_train_end

    def cramped(self, trainer, module):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            original(self, trainer, module)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterSaver, "on_train_end", cramped)
        with pytest.raises(SystemExit, match=r"do not fit on the disk .* add --resume"):
            train(tmp_path / "run", *SMALL)
    assert not list(tmp_path.glob("run/*adapter*"))
    train(tmp_path / "run", *SMALL, "--resume")
    assert report(tmp_path / "run")["steps"] == 2
    assert adapter(tmp_path / "run")


def test_resume_refuses_other_data_and_other_weights(train, world, tmp_path, capsys):
    train(tmp_path / "run", *SMALL)
    for change, words in (
        (["--data.frames", "[4]"], "data.frames was [8, 12] and is [4]"),
        (
            ["--model.lora.rank", "8", "--model.lora.alpha", "9"],
            "rank was 4 and is 8; model.lora.alpha was 8.0 and is 9.0",
        ),
        (["--model.train_projector", "true"], "model.train_projector was False and is True"),
    ):
        with pytest.raises(SystemExit):
            train(tmp_path / "run", *SMALL, *change, "--resume", "--trainer.max_steps", "3")
        assert words in capsys.readouterr().err
    recorded = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"learning rate has come down to 0 at step 2.*final_lr_ratio"):
        train(tmp_path / "run", *SMALL, "--resume", "--trainer.max_steps", "3")
    assert (tmp_path / "run" / "config.yaml").read_bytes() == recorded
    LiteFrameEncoder.from_pretrained(world / "encoder").save_pretrained(tmp_path / "other")
    other = LiteFrameEncoder.from_pretrained(tmp_path / "other")
    with torch.no_grad():
        other.head.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"model.vlm, model.encoder was \w{64} and is \w{64}"):
        train(tmp_path / "run", *SMALL, "--model.encoder", str(tmp_path / "other"), "--resume")
    rows = tmp_path / "rows.jsonl"
    lines = (world / "toy" / "train.jsonl").read_text().splitlines(keepends=True)
    videos = json.dumps(str(world / "toy") + "/")[1:-1]
    rows.write_text("".join(line.replace('"video": "', f'"video": "{videos}') for line in lines[1:]))
    with pytest.raises(ValueError, match=r"data.conversations was a list of 6 \(\w+\) and is a list of 5"):
        train(tmp_path / "run", *SMALL, "--resume", rows=rows)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", *SMALL)  # a run is not overwritten


def test_bad_videos_are_counted_and_bounded(train, world, tmp_path, capsys):
    rows = (world / "toy" / "train.jsonl").read_text().splitlines()
    rows = [{**json.loads(row), "video": str(world / "toy" / json.loads(row)["video"])} for row in rows]
    (tmp_path / "empty.mp4").write_bytes(b"")
    rows[1]["video"] = str(tmp_path / "empty.mp4")
    rows[4]["start"] = 99.0
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(tmp_path / "run", *SMALL, "--data.max_failure_rate", "0.9", "--trainer.max_steps", "3", rows=path)
    figures = report(tmp_path / "run")["data"]
    assert figures["clips_failed"] == 4  # two rows, two epochs
    assert figures["clips_read"] == 8
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad_videos.jsonl").read_text().splitlines()]
    assert {(Path(row["path"]).name, row["kind"]) for row in listed} == {
        ("empty.mp4", "empty"),
        (Path(rows[4]["video"]).name, "index"),
    }
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "strict", *SMALL, "--data.max_failure_rate", "0.1", "--trainer.max_steps", "6", rows=path)
    assert "empty.mp4: empty" in str(stopped.value.code)
    assert "max_failure_rate" in str(stopped.value.code)


def test_more_frames_than_the_language_model_reads_are_refused(train, tmp_path):
    with pytest.raises(ValueError, match="use fewer frames"):
        train(tmp_path / "run", *SMALL, "--data.frames", "[8,4000]")


def test_conversations_longer_than_the_language_model_reads_are_refused_and_the_run_can_start_again(
    train, world, tmp_path, capfd
):
    rows = [json.loads(row) for row in (world / "toy" / "train.jsonl").read_text().splitlines()][:2]
    rows = [{**row, "video": str(world / "toy" / row["video"])} for row in rows]
    words = "red " * 4200  # 8,192 tokens are read
    turns = [{"from": who, "value": words} for who in ("human", "gpt")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, {"conversations": turns})))
    with pytest.raises(SystemExit, match=r"1 of 3 conversations are longer than the 8192.*\n  number 2: 84\d\d tokens"):
        train(tmp_path / "run", *SMALL, rows=path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    with pytest.raises(SystemExit, match=r"--data.conversations: .*rows\.jsonl:3: not JSON"):
        train(tmp_path / "run", *SMALL, rows=path)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(tmp_path / "run", *SMALL, rows=path)
    assert report(tmp_path / "run")["data"]["rows"] == 2
    assert "longer than the specified maximum" not in capfd.readouterr().err


def test_a_batch_without_any_readable_video_changes_nothing(train, world, tmp_path):
    rows = [json.loads(row) for row in (world / "toy" / "train.jsonl").read_text().splitlines()]
    rows = [{**row, "video": str(tmp_path / f"none{i}.mp4")} for i, row in enumerate(rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(tmp_path / "run", *SMALL, "--data.max_failure_rate", "1.0", rows=path)
    assert report(tmp_path / "run")["data"]["clips_failed"] == 8
    weights = adapter(tmp_path / "run")
    assert all(weights[name].abs().max() == 0 for name in weights if "lora_B" in name)


def test_gradient_checkpointing_computes_activations_twice(train, tmp_path, monkeypatch):
    calls = []
    forward = Qwen2MLP.forward
    monkeypatch.setattr(Qwen2MLP, "forward", lambda self, x: calls.append(self.training) or forward(self, x))
    counts = {}
    for switch in ("false", "true"):
        calls.clear()
        settings = [*SMALL, "--trainer.max_steps", "1", "--model.gradient_checkpointing", switch]
        train(tmp_path / switch, *settings)
        counts[switch] = len(calls)
    assert counts["true"] == 2 * counts["false"] > 0
    assert all(calls)


def test_precisions_that_round_targets_or_weights_are_refused(train, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(tmp_path / "run", *SMALL, "--trainer.precision", "16-mixed")
    assert "use 32-true or bf16-mixed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_kept_features_train_the_same_adapter(train, tmp_path):
    """Bit for bit, of videos that are encoded one by one: of several at once, a matrix product may round otherwise."""
    settings = [*SMALL, "--data.fps", "[8,8]", "--trainer.max_steps", "4", "--model.lora.dropout", "0"]
    settings += ["--model.optimizer.lr", "0.01", "--data.micro_batch_size", "1"]
    train(tmp_path / "again", *settings)
    train(tmp_path / "kept", *settings, "--data.cache_features", "true")
    again, kept = adapter(tmp_path / "again"), adapter(tmp_path / "kept")
    assert any(again[name].abs().max() > 0 for name in again if "lora_B" in name)
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in again)
    with pytest.raises(ValueError, match="features change"):
        train(tmp_path / "no", *settings, "--data.cache_features", "true", "--model.train_encoder", "true")


def test_kept_and_new_features_come_in_the_order_of_the_videos():
    cache, encoded = FeatureCache(), []

    def encode(pixels, counts):
        encoded.append(counts)
        return SimpleNamespace(pooler_output=[part.flatten() for part in pixels.split(counts)])

    def features(*videos):
        """Of videos (name, frames), those that are not kept with their number in each frame."""
        keys = [(name, tuple(range(frames))) for name, frames in videos]
        kept = [key in cache for key in keys]
        new = [torch.full((len(key[1]), 1), float(key[0])) for key, old in zip(keys, kept, strict=True) if not old]
        batch = SimpleNamespace(
            input_ids=torch.zeros(1), media_keys=keys, cached=kept, video_frames=[len(video) for video in new],
            pixels=torch.cat(new) if new else torch.empty(0),
        )  # fmt: skip
        return [
            tensor.tolist()
            for tensor in cache.features(SimpleNamespace(get_video_features=encode), batch).pooler_output
        ]

    assert features(("1", 2), ("2", 1)) == [[1.0, 1.0], [2.0]]
    assert features(("3", 1), ("1", 2), ("1", 3), ("2", 1)) == [[3.0], [1.0, 1.0], [1.0, 1.0, 1.0], [2.0]]
    assert features(("2", 1), ("3", 1)) == [[2.0], [3.0]]
    assert encoded == [[2, 1], [1, 3]]


def test_it_learns_and_the_merged_model_answers_as_the_adapter_does(train, world, tmp_path):
    settings = ["--data.fps", "[8,8]", "--data.frames", "[8]", "--data.batch_size", "6", "--data.micro_batch_size", "6"]
    settings += ["--data.workers", "0", "--data.cache_features", "true", "--model.lora.rank", "16"]
    settings += ["--model.optimizer.lr", "0.02", "--trainer.max_steps", "25"]
    train(tmp_path / "run", *settings)
    assert report(tmp_path / "run")["figures"]["train/loss"] < 1.5  # log(562) = 6.3 for a guess
    merged, processor = load_video_llm(world / "vlm", encoder=world / "encoder", adapter=tmp_path / "run" / "adapter")
    plain, _ = load_video_llm(world / "vlm", encoder=world / "encoder")
    inputs = processor(text="<video>\nWhat shape is the object?", videos=[torch.zeros(8, 64, 64, 3, dtype=torch.uint8)])
    unmerged = load_adapter(load_video_llm(world / "vlm", encoder=world / "encoder")[0], tmp_path / "run" / "adapter")
    with torch.no_grad():
        logits = merged(**inputs).logits
        torch.testing.assert_close(logits, unmerged.eval()(**inputs).logits, rtol=1e-3, atol=1e-3)
        assert (logits - plain(**inputs).logits).abs().max() > 1
    merged.save_pretrained(tmp_path / "merged")
    processor.save_pretrained(tmp_path / "merged")
    again, _ = load_video_llm(tmp_path / "merged")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, logits)


def test_a_trained_projector_and_encoder_travel_with_the_adapter(train, world, tmp_path, capsys):
    settings = [*SMALL, "--model.train_projector", "true", "--model.train_encoder", "true"]
    train(tmp_path / "run", *settings, "--model.optimizer.lr", "0.01")
    assert "projector: trained; encoder: trained" in capsys.readouterr().err
    merged, _ = load_video_llm(world / "vlm", encoder=world / "encoder", adapter=tmp_path / "run" / "adapter")
    before, _ = load_video_llm(world / "vlm", encoder=world / "encoder")
    assert not torch.equal(
        merged.model.multi_modal_projector.linear_1.weight, before.model.multi_modal_projector.linear_1.weight
    )
    saved = LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder").state_dict()
    trained = merged.model.vision_tower.encoder.state_dict()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)
    assert not torch.equal(trained["head.weight"], before.model.vision_tower.encoder.head.weight)
    merged.save_pretrained(tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["model_type"] == "liteframe_internvl"


def test_a_stopped_step_with_kept_features_is_dumped(train, tmp_path):
    """With a factor near 1 an ordinary step is a spike."""
    settings = [*SMALL, "--data.fps", "[8,8]", "--data.frames", "[8]", "--data.cache_features", "true"]
    settings += ["--model.guard.warmup", "1", "--model.guard.factor", "1.001", "--model.guard.max_skipped", "0"]
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", *settings, "--trainer.max_steps", "12")
    assert "times the median" in str(stopped.value.code)
    row = json.loads((tmp_path / "run" / "skipped_steps.jsonl").read_text())
    assert row["step"] >= 1  # all six videos, two of them again
    assert all(Path(clip["path"]).is_file() for clip in row["clips"])
    dump = tmp_path / "run" / "dumps" / f"step_{row['step']:06d}"
    fields = json.loads((dump / "batch_0.json").read_text())
    assert [key for batch in fields for key in batch["keys"]] == [clip["key"] for clip in row["clips"]]
    assert load_file(dump / "batch_0.safetensors").keys() >= {"0.input_ids", "0.labels", "1.input_ids"}
    assert all(".lora_" in name for name in load_file(dump / "weights.safetensors"))
