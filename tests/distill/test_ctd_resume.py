"""A run that was stopped and continued is the run that was never stopped."""

import json
import os
import re
import resource
import shutil
import signal

import pytest
import torch
import yaml
from worlds.states import assert_same_state

from liteframe.distill.module import CTDModule
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.resume import SETTINGS, OnResume, flat


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def straight(seven_steps):
    """Folder and batches of a run that nobody stopped."""
    return seven_steps.run, seven_steps.batches


def assert_same(run, straight):
    expected, result = weights(straight[0]), weights(run)
    assert result["global_step"] == expected["global_step"] == 7
    assert_same_state(expected["state_dict"], result["state_dict"])
    assert_same_state(expected["optimizer_states"], result["optimizer_states"])


def test_one_bit_of_one_moment_is_a_difference(straight):
    expected, changed = (weights(straight[0])["optimizer_states"] for _ in range(2))
    assert_same_state(expected, changed)
    moments = [value["exp_avg"] for value in changed[0]["state"].values()]
    largest = max(moments, key=torch.Tensor.numel)
    assert largest.numel() > 1000  # printing elides some
    largest.view(torch.int32).view(-1)[largest.numel() // 2] ^= 1
    with pytest.raises(AssertionError, match="exp_avg"):
        assert_same_state(expected, changed)


def send(monkeypatch, hook, when, number):
    """Send this process a signal from within a hook of the module, once."""
    original, sent = getattr(CTDModule, hook), []

    def wrapped(self, *args):
        if when(self) and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(CTDModule, hook, wrapped)


@pytest.mark.parametrize(
    ("hook", "step", "number"),
    [
        ("training_step", 0, signal.SIGTERM),
        ("training_step", 4, signal.SIGINT),  # the middle of an epoch of two steps is 3
        ("training_step", 3, signal.SIGUSR1),
        ("validation_step", 3, signal.SIGTERM),
    ],
)
def test_stopped_and_resumed_equals_straight(fit, watch, tmp_path, monkeypatch, straight, hook, step, number):
    seen, handler = watch(monkeypatch), signal.getsignal(number)  # SIGINT is ignored in the background of a shell
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        send(patch, hook, lambda module: module.global_step == step, number)
        with pytest.raises(SystemExit) as stop:
            fit("--run", run)
    assert stop.value.code == 128 + number
    assert weights(run)["global_step"] == (step + 1 if hook == "training_step" else step)
    assert signal.getsignal(number) == handler
    fit("--run", run, "--resume")
    assert seen == straight[1]
    assert_same(run, straight)


def test_muon_with_averaged_weights_stopped_and_resumed_equals_straight(fit, tmp_path, monkeypatch):
    muon = ["--model.optimizer.kind", "muon", "--trainer.max_steps", 4, "--ema.decay", 0.4]
    fit("--run", tmp_path / "straight", *muon)
    with monkeypatch.context() as patch:
        send(patch, "training_step", lambda module: module.global_step == 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            fit("--run", tmp_path / "stopped", *muon)
    fit("--run", tmp_path / "stopped", *muon, "--resume")
    expected, result = weights(tmp_path / "straight"), weights(tmp_path / "stopped")
    assert expected["global_step"] == result["global_step"] == 4
    kept = [set(state) for state in expected["optimizer_states"][0]["state"].values()]
    assert kept.count({"momentum_buffer"}) == 8  # the linear layers of two blocks
    assert expected["weight_average"]["updates"] == 4
    for part in ("state_dict", "optimizer_states", "weight_average"):
        assert_same_state(expected[part], result[part])


def test_a_signal_while_statistics_are_measured_leaves_nothing_half_done(
    fit, watch, tmp_path, monkeypatch, straight, capsys
):
    run = tmp_path / "early"
    with monkeypatch.context() as patch:
        send(patch, "pooled_target", lambda module: not module.objective.ready, signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            fit("--run", run)
    assert stop.value.code == 128 + signal.SIGTERM
    assert "while measuring target statistics" in capsys.readouterr().err
    assert not (run / "target_statistics.safetensors").exists()
    assert not (run / "checkpoints").exists()
    seen = watch(monkeypatch)
    with pytest.raises(SystemExit):
        fit("--run", run, "--resume")  # there is nothing to continue
    fit("--run", run, "--resume", "auto")
    assert seen == straight[1]
    assert_same(run, straight)


@pytest.fixture
def limited_file_size():
    """A disk on which nothing as large as a given file fits: writes fail in the middle, as on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(example):
        soft = before[0] if example is None else example.stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))

    yield limit
    limit(None)


def stopped_at(step, fit, run, monkeypatch):
    with monkeypatch.context() as patch:
        send(patch, "training_step", lambda module: module.global_step == step - 1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            fit("--run", run)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(fit, tmp_path, monkeypatch, straight):
    run = tmp_path / "damaged"
    stopped_at(5, fit, run, monkeypatch)
    last = run / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-5\.ckpt .*digest.*continuing from .*step-4\.ckpt"):
        fit("--run", run, "--resume", "auto")
    assert_same(run, straight)
    named = json.loads((run / "checkpoints" / "manifest.json").read_text())["checkpoints"]
    assert [line["step"] for line in named] == [7, 6]


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint_before(
    fit, tmp_path, monkeypatch, straight, limited_file_size
):
    run = tmp_path / "full"

    def limit(self, batch, batch_idx, original=CTDModule.training_step):
        if self.global_step == 3:
            limited_file_size(run / "checkpoints" / "last.ckpt")
        return original(self, batch, batch_idx)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(CTDModule, "training_step", limit)
            with pytest.raises(SystemExit) as stop:
                fit("--run", run)
    finally:  # before pytest writes again
        limited_file_size(None)
    assert isinstance(stop.value.code, str)
    words = stop.value.code
    assert "checkpoint of step 4" in words
    assert str(run / "checkpoints" / "step-4.ckpt") in words
    assert "bytes are free" in words
    assert "step-3.ckpt is untouched" in words
    fit("--run", run, "--resume")
    assert_same(run, straight)


def test_a_run_killed_before_its_report_makes_up_for_it(fit, tmp_path, straight):
    run = tmp_path / "run"
    shutil.copytree(straight[0], run, symlinks=True)
    (run / "report.json").unlink()
    shutil.rmtree(run / "encoder")
    fit("--run", run, "--resume")
    before, after = (json.loads((folder / "report.json").read_text()) for folder in (straight[0], run))
    assert after["steps"] == 7
    for name, value in before["figures"].items():
        if name.startswith("val/"):
            assert after["figures"][name] == pytest.approx(value, rel=1e-6)
    old, new = (LiteFrameEncoder.from_pretrained(folder / "encoder").state_dict() for folder in (straight[0], run))
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model.student.mlp_dim", 48], "model.student.mlp_dim was 32 and is 48"),
        (["--model.target.standardize", "none"], "model.target.standardize was 'channel' and is 'none'"),
        (["--model.target.sigmas", 2, "--data.size", 32], r"sigmas was 3.0 and is 2.0; data.size was None and is 32"),
    ],
)
def test_what_the_run_rests_on_is_refused_before_anything_is_written(fit, tmp_path, straight, capsys, change, words):
    run = tmp_path / "run"
    shutil.copytree(straight[0], run, symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        fit("--run", run, "--resume", *change)
    assert stop.value.code == 2
    assert re.search(words + r"\. Leave such a setting out .*--init_from", capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_checkpoint_holds_digests_of_what_settings_name(straight):
    saved = weights(straight[0])
    held = saved["contents"] | saved["ClipDataModule"]["contents"]
    of_lma = {"model.vlm", "model.encoder", "model.init_adapter", "data.conversations", "data.pairs", "data.tokens"}
    assert held.keys() | of_lma == {name for name, row in SETTINGS.items() if row is OnResume.CONTENTS}


def test_the_checkpoint_knows_its_settings_whatever_config_yaml_says(fit, tmp_path, straight, capsys):
    run = tmp_path / "run"
    shutil.copytree(straight[0], run, symlinks=True)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("scope: block", "scope: frame"))
    with pytest.raises(SystemExit):
        fit("--run", run, "--resume")
    assert "model.target.scope was 'block' and is 'frame'" in capsys.readouterr().err
    state = weights(run)
    del state["settings"]
    (run / "checkpoints" / "manifest.json").unlink()
    torch.save(state, run / "checkpoints" / "last.ckpt")
    with pytest.warns(UserWarning, match="cannot be checked"), pytest.raises(SystemExit):
        fit("--run", run, "--resume")
    assert "is of an earlier LiteFrame" in capsys.readouterr().err


def test_resume_names_the_weights_that_do_not_fit(fit, tmp_path, straight):
    """Should the settings of another run have come with them."""
    run = tmp_path / "run"
    shutil.copytree(straight[0], run, symlinks=True)
    (run / "checkpoints" / "manifest.json").unlink()
    state = weights(run)
    for name, value, problem in (
        ("mlp_dim", 48, r"student\.blocks\.\d\.mlp\S* has shape \[32.* instead of \[48.*--init_from"),
        ("depth", 3, r"missing student\.blocks\.2"),
    ):
        settings = state["settings"] | {f"model.student.{name}": value, "model.init": "random"}
        torch.save(state | {"settings": settings}, run / "checkpoints" / "last.ckpt")
        with pytest.warns(UserWarning, match="cannot be checked"), pytest.raises(ValueError, match=problem):
            fit("--run", run, "--resume", "--model.init", "random", f"--model.student.{name}", value)


def test_what_may_change_is_applied_and_recorded_and_what_is_left_out_stays(fit, tmp_path, monkeypatch, straight):
    """The first run had no `workers` in its configuration: the configuration of the second says nothing at all."""
    run, seen = tmp_path / "run", []
    shutil.copytree(straight[0], run, symlinks=True)
    original = CTDModule.configure_gradient_clipping

    def look(self, optimizer, **clip):
        groups = [{name: group[name] for name in ("lr", "weight_decay", "betas")} for group in optimizer.param_groups]
        seen.append((self.global_step, groups, self.objective, self.guard.settings.factor))
        return original(self, optimizer, **clip)

    monkeypatch.setattr(CTDModule, "configure_gradient_clipping", look)
    asked = {
        "model.optimizer.lr": 5e-4, "model.optimizer.weight_decay": 0.0, "model.optimizer.betas": [0.8, 0.9],
        "model.optimizer.final_lr_ratio": 0.02, "model.loss": "smooth_l1", "model.target.clipping": "none",
        "model.guard.factor": 30.0, "trainer.max_steps": 9,
    }  # fmt: skip
    words = [word for name, value in asked.items() for word in (f"--{name}", value)]
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")
    fit("--run", run, "--resume", *words, config=empty)
    assert [step for step, *_ in seen] == [7, 8]
    # The cosine had come down to 0.01 at step 7, and goes up to 0.02 at step 9: half of the way at step 8.
    for (_, groups, objective, factor), part in zip(seen, (0.01, 0.015), strict=True):
        assert groups == 2 * [{"lr": pytest.approx(5e-4 * part), "weight_decay": 0.0, "betas": (0.8, 0.9)}]
        assert objective.normalizer.settings.clipping == "none"
        assert factor == 30
    figures = {"train/lr": 5e-4 * 0.015, "train/clipped_fraction": 0}
    report = json.loads((run / "report.json").read_text())
    assert {name: report["figures"][name] for name in figures} == pytest.approx(figures)
    before, now = (dict(flat(yaml.safe_load((path / "config.yaml").read_text()))) for path in (straight[0], run))
    own = {"run": str(run)}  # a folder may be moved
    assert now == before | asked | own
    assert report["config_changes"] == [
        {"step": 7, "setting": name, "from": before[name], "to": now[name]} for name in now if name in asked
    ]
    saved = weights(run)
    assert {name: saved["settings"][name] for name in asked} == asked
    # Killed before the checkpoint of step 8 and asked for nothing more, it would be the same run.
    fit("--run", run, "--resume", config=empty)
    assert json.loads((run / "report.json").read_text()) == report


def test_a_slurm_job_saves_requeues_and_resumes_by_itself(fit, tmp_path, monkeypatch, slurm, straight):
    arguments = ["--run", tmp_path / "run", "--resume", "auto"]
    with monkeypatch.context() as patch:
        send(patch, "training_step", lambda module: module.global_step == 1, signal.SIGUSR1)
        with pytest.raises(SystemExit) as stop:
            fit(*arguments)
    assert stop.value.code == 128 + signal.SIGUSR1
    assert slurm() == ["requeue 4711"]
    assert weights(tmp_path / "run")["global_step"] == 2
    fit(*arguments)  # SLURM starts the same command line again
    assert_same(tmp_path / "run", straight)
    assert slurm() == ["requeue 4711"]
