"""Steps that would harm the student are skipped as if they had not been, and too many of them stop the run."""

import json
import math
import re

import pytest
import torch
from worlds import ROOT
from worlds.states import assert_same_state

from liteframe.distill.module import CTDModule


def saved(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run):
    return [json.loads(line) for line in (run / "skipped_steps.jsonl").read_text().splitlines()]


def reloaded(folder):
    """What the lines of docs/loss_spikes.md make of a dump."""
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loss_spikes.md").read_text(), re.DOTALL)
    assert lines.count('"RUN/dumps/step_000123"') == 1
    names = {}
    exec(lines.replace('"RUN/dumps/step_000123"', repr(str(folder))), names)
    return names


def spoil(monkeypatch, where, steps, value=math.nan):
    """Put `value` into frames, target or prediction of some steps, or multiply the prediction's gradient by it."""
    original = CTDModule.step_loss

    def frames(self, batch):
        if self.global_step in steps:
            batch.video[0, 0, 0, 0, 0] = value
        return original(self, batch)

    def output(part):
        forward = getattr(CTDModule, part)

        def wrapped(self, *args, **asked):
            result = forward(self, *args, **asked)
            if self.training and self.global_step in steps:
                if where == "gradient":
                    result.register_hook(lambda gradient: gradient * value)
                else:
                    (result[0] if isinstance(result, tuple) else result).data.flatten()[3] = value
            return result

        return wrapped

    if where == "frames":
        monkeypatch.setattr(CTDModule, "step_loss", frames)
    else:
        part = {"target": "pooled_target", "prediction": "encode", "gradient": "encode"}[where]
        monkeypatch.setattr(CTDModule, part, output(part))


@pytest.mark.parametrize(
    ("where", "value", "cause", "optimizer"),
    [
        ("frames", math.nan, "frames", "adamw"),
        ("target", math.inf, "target", "adamw"),
        ("prediction", math.nan, "prediction", "adamw"),
        ("prediction", 1e4, "spike", "adamw"),
        ("gradient", math.nan, "gradient", "adamw"),
        ("gradient", math.nan, "gradient", "muon"),
    ],
)
def test_a_skipped_step_leaves_weights_and_moments_alone(fit, tmp_path, monkeypatch, where, value, cause, optimizer):
    steps = {}

    def note(self, outputs, batch, batch_idx):
        state = [value for entry in self.optimizers().state.values() for value in entry.values()]
        steps[self.global_step - 1] = [t.clone() for t in (*self.student.parameters(), *state)]

    monkeypatch.setattr(CTDModule, "on_train_batch_end", note)
    spoil(monkeypatch, where, {4}, value)
    fit("--run", tmp_path / "run", "--model.guard.warmup", 3, "--model.optimizer.kind", optimizer)
    assert len(steps) == 7
    for step in range(1, 7):
        same = all(map(torch.equal, steps[step], steps[step - 1]))
        assert same == (step == 4)
    (row,) = rows(tmp_path / "run")
    assert (row["step"], row["cause"]) == (4, cause)
    assert all(clip["path"].endswith(".mp4") and len(clip["key"]) == 2 for clip in row["clips"])


def test_the_report_of_a_run_that_ends_with_a_skip_is_json(fit, tmp_path, monkeypatch):
    spoil(monkeypatch, "frames", {6})
    fit("--run", tmp_path / "run")
    text = (tmp_path / "run" / "report.json").read_text()
    figures = json.loads(text, parse_constant=pytest.fail)["figures"]
    assert figures["train/loss"] is None
    assert figures["train/skipped_steps"] == 1
    assert figures["val/token_cosine"] > 0


def test_too_many_stop_the_run_with_a_dump_that_can_be_loaded(fit, tmp_path, monkeypatch):
    run, before = tmp_path / "run", {}

    def note(self, outputs, batch, batch_idx):
        before.update({name: tensor.clone() for name, tensor in self.state_dict().items()})

    monkeypatch.setattr(CTDModule, "on_train_batch_end", note)
    spoil(monkeypatch, "frames", {1, 3, 4})
    with pytest.raises(SystemExit) as stop:
        fit("--run", run, "--model.guard.max_skipped", 2)
    message, folder = str(stop.value.code), run / "dumps" / "step_000004"
    assert "stopped at step 4: more than 2 of the last 100 steps" in message
    assert "a frame of the batch is not" in message
    assert f"of this step are in {folder};" in message
    assert [row["step"] for row in rows(run)] == [1, 3, 4]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [
        "batch_0.json", "batch_0.safetensors", "config.yaml", "state.json", "weights.safetensors"
    ]  # fmt: skip
    dump = reloaded(folder)
    assert dump["broken"] == ["0.video"]
    assert dump["weights"].keys() == before.keys()
    assert all(torch.equal(dump["weights"][name], tensor) for name, tensor in before.items())
    assert dump["state"]["clips"] == rows(run)[-1]["clips"]
    assert dump["fields"][0]["paths"] == [clip["path"] for clip in dump["state"]["clips"]]
    assert dump["state"]["cause"] == "frames"


def test_a_resumed_run_guards_as_the_one_that_was_not_stopped(fit, tmp_path, monkeypatch):
    """Skips before and after the kill; the steps since the last save are done, and recorded, once more."""
    spoil(monkeypatch, "target", {1, 3, 5})
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    fit("--run", straight)

    class Killed(BaseException):
        pass

    def kill(self, outputs, batch, batch_idx):
        if self.global_step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(CTDModule, "on_train_batch_end", kill)
        with pytest.raises(Killed):
            fit("--run", cut, "--checkpoint.every_n_steps", 3, "--trainer.val_check_interval", 7)
    assert [row["step"] for row in rows(cut)] == [1, 3]
    assert saved(cut)["global_step"] == 3
    fit("--run", cut, "--resume", "--checkpoint.every_n_steps", 3, "--trainer.val_check_interval", 7)
    expected, result = saved(straight), saved(cut)
    assert rows(cut) == rows(straight)
    assert result["guard"] == expected["guard"]
    assert result["guard"]["skipped"] == 3
    assert len(result["guard"]["norms"]) == 4
    assert_same_state(expected["state_dict"], result["state_dict"])
    assert_same_state(expected["optimizer_states"], result["optimizer_states"])


def test_a_spike_under_accumulation_is_decoded_again_from_its_keys(fit, watch, tmp_path, monkeypatch):
    """With a factor near 1 an ordinary step is a spike."""
    run, batches = tmp_path / "run", watch(monkeypatch)
    with pytest.raises(SystemExit) as stop:
        fit("--run", run, "--data.micro_batch_size", 1, "--model.guard.warmup", 1, "--model.guard.factor", 1.001,
            "--model.guard.max_skipped", 0)  # fmt: skip
    assert "times the median" in str(stop.value.code)
    (row,) = rows(run)
    assert row["cause"] == "spike"
    assert row["norm"] > 1.001 * row["median"]
    assert [clip["micro_batch"] for clip in row["clips"]] == [0, 1]
    dump = reloaded(run / "dumps" / f"step_{row['step']:06d}")
    assert dump["broken"] == []
    assert dump["state"]["norm"] == row["norm"]
    for number, (_, paths, total, _) in enumerate(batches[-2:]):
        assert dump["fields"][number]["paths"] == list(paths)
        assert dump["batch"][f"{number}.video"].double().sum().item() == total
