"""A run that was stopped and continued is the run that was never stopped."""

import os
import signal
import sys

import pytest
import torch

import train_ctd
from liteframe.distill.module import CTDModule


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def watch(patch):
    """Paths and pixels of every training batch, in order."""
    record = []
    original = CTDModule.training_step

    def step(self, batch, batch_idx):
        record.append((self.global_step, tuple(batch.paths), batch.video.double().sum().item()))
        return original(self, batch, batch_idx)

    patch.setattr(CTDModule, "training_step", step)
    return record


@pytest.fixture(scope="module")
def straight(tiny_config, tmp_path_factory):
    """Final state and batches of a run that nobody stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        record = watch(patch)
        patch.setattr(sys, "argv", ["train_ctd.py", "fit", "--config", str(tiny_config), "--run", str(run)])
        train_ctd.main()
    return weights(run), record


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
def test_stopped_and_resumed_equals_straight(fit, tmp_path, monkeypatch, straight, hook, step, number):
    expected, order = straight
    seen = watch(monkeypatch)
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
