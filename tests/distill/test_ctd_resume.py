"""A run that was stopped and continued is the run that was never stopped."""

import os
import signal

import pytest
import torch

from liteframe.distill.module import CTDModule


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def seen(monkeypatch):
    """Paths and pixels of every training batch, in order."""
    record = []
    original = CTDModule.training_step

    def step(self, batch, batch_idx):
        record.append((self.global_step, tuple(batch.paths), batch.video.double().sum().item()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CTDModule, "training_step", step)
    return record


@pytest.fixture
def straight(fit, tmp_path, seen):
    fit("--run", tmp_path / "straight")
    return weights(tmp_path / "straight"), list(seen)


def send(monkeypatch, hook, at_step, number):
    """Send this process a signal from within a hook of the module."""
    original = getattr(CTDModule, hook)

    def wrapped(self, *args):
        if self.global_step == at_step:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(CTDModule, hook, wrapped)


@pytest.mark.parametrize(
    ("hook", "step", "number"),
    [
        ("training_step", 0, signal.SIGTERM),
        ("training_step", 4, signal.SIGINT),  # the middle of an epoch of two steps is 3
        ("training_step", 3, signal.SIGTERM),
        ("validation_step", 3, signal.SIGTERM),
    ],
)
def test_stopped_and_resumed_equals_straight(fit, tmp_path, monkeypatch, straight, seen, hook, step, number):
    expected, order = straight
    seen.clear()
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        send(patch, hook, step, number)
        with pytest.raises(SystemExit) as stop:
            fit("--run", run)
    assert stop.value.code == 128 + number
    assert weights(run)["global_step"] == (step + 1 if hook == "training_step" else step)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    fit("--run", run, "--resume")
    result = weights(run)
    assert seen == order
    assert result["global_step"] == expected["global_step"] == 7
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, result["state_dict"][name]), name
    assert str(expected["optimizer_states"]) == str(result["optimizer_states"])
