"""--ema.decay: the average against one computed here, in validation, encoder, checkpoint and after a resume."""

import copy
import json
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from liteframe.distill.module import CTDModule
from liteframe.training.ema import WeightAverage, WeightEMA

SKIPPED = 4  # the step from weights 4 to 5


def reference(history, decay):
    """The average in float64, from the weights at the start and after each step that was made."""
    average = {name: tensor.double() for name, tensor in history[0].items()}
    for n, weights in enumerate(history[1:]):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * tensor.double() for name, tensor in weights.items()}
    return average


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=1e-5, atol=1e-6)


def trained(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_average_of_a_random_walk():
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, history = WeightAverage(model, 0.6), [trained(model)]
    for _ in range(12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model)
        history.append(trained(model))
    close(average.weights, reference(history, 0.6))
    average.exchange(model)
    close(trained(model), reference(history, 0.6))
    average.exchange(model)
    assert torch.equal(model.weight, history[-1]["weight"])
    assert average.weights.keys() == {"weight"}


def test_sharded_weights_are_averaged_saved_whole_and_restored(tmp_path):
    """FSDP2, in a group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        plain = torch.nn.Linear(3, 2)
        sharded = fully_shard(copy.deepcopy(plain), mesh=init_device_mesh("cpu", (1,)))
        averages = [WeightAverage(model, 0.6) for model in (plain, sharded)]
        for _ in range(5):
            for model, average in zip((plain, sharded), averages, strict=True):
                with torch.no_grad():
                    model.weight.mul_(1.5)
                average.update(model)
        assert isinstance(averages[1].weights["weight"], DTensor)
        assert not isinstance(averages[1].full_tensors()["weight"], DTensor)
        close(averages[1].full_tensors(), averages[0].weights)
        again = WeightAverage(sharded, 0.6)
        again.restore(averages[1].full_tensors(), 5)
        again.exchange(sharded)
        close({name: p.full_tensor() for name, p in trained(sharded).items()}, averages[0].weights)
    finally:
        torch.distributed.destroy_process_group()


def test_run_validates_and_saves_the_average(fit, tmp_path, monkeypatch):
    plain, validated = [], []
    clip, validation_step = CTDModule.configure_gradient_clipping, CTDModule.validation_step

    def configure_gradient_clipping(self, optimizer, **settings):
        plain.append(trained(self))  # before this step, so after the one before
        clip(self, optimizer, **settings)
        if self.global_step == SKIPPED:
            optimizer.zero_grad(set_to_none=True)

    def watched_step(self, batch, batch_idx):
        if batch_idx == 0:
            validated.append((self.global_step, trained(self)))
        return validation_step(self, batch, batch_idx)

    monkeypatch.setattr(CTDModule, "configure_gradient_clipping", configure_gradient_clipping)
    monkeypatch.setattr(CTDModule, "validation_step", watched_step)
    run = tmp_path / "run"
    fit("--run", run, "--ema.decay", 0.4, "--data.micro_batch_size", 1)
    saved = checkpoint(run)
    final = {name: saved["state_dict"][name] for name in plain[0]}
    plain.append(final)
    assert len(plain) == 8
    assert all(torch.equal(plain[SKIPPED][name], plain[SKIPPED + 1][name]) for name in final)

    def average_after(step):
        made = [weights for n, weights in enumerate(plain[: step + 1]) if n != SKIPPED + 1]
        return reference(made, 0.4)

    close(saved["weight_average"]["weights"], average_after(7))
    assert saved["weight_average"]["updates"] == 6
    assert [step for step, _ in validated] == [3, 6, 7, 7]
    for step, weights in validated[:-1]:
        close(weights, average_after(step))
    close(validated[-1][1], final)

    encoder = load_file(run / "encoder" / "model.safetensors")
    mean, std = (saved["state_dict"][f"target.standardizer.{name}"] for name in ("mean", "inverse_map"))
    averaged = {name.removeprefix("student."): tensor.float() for name, tensor in average_after(7).items()}
    averaged["head.weight"] *= std[:, None]
    averaged["head.bias"] = averaged["head.bias"] * std + mean
    close(encoder, averaged)
    figures = json.loads((run / "report.json").read_text())["figures"]
    assert figures["val/token_cosine"] != figures["val/token_cosine_without_ema"]


@pytest.fixture(scope="module")
def straight(tiny_config, tmp_path_factory):
    """Final checkpoint and figures of a run that nobody stopped."""
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_ctd.py", "fit", "--config", str(tiny_config), "--run", str(run),
                                   "--ema.decay", "0.4"])  # fmt: skip
        __import__("train_ctd").main()
    return checkpoint(run), json.loads((run / "report.json").read_text())["figures"]


@pytest.mark.parametrize("hook", ["training_step", "validation_step"])
def test_stopped_and_resumed_average_is_the_same_to_the_bit(fit, tmp_path, monkeypatch, straight, hook):
    original, run = getattr(CTDModule, hook), tmp_path / "run"

    def stop(self, *args):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(CTDModule, hook, stop)
        with pytest.raises(SystemExit):
            fit("--run", run, "--ema.decay", 0.4)
    assert checkpoint(run)["global_step"] == (4 if hook == "training_step" else 3)
    fit("--run", run, "--ema.decay", 0.4, "--resume")
    expected, figures = straight
    found = checkpoint(run)
    assert found["weight_average"]["updates"] == expected["weight_average"]["updates"] == 7
    for name, tensor in expected["weight_average"]["weights"].items():
        assert torch.equal(tensor, found["weight_average"]["weights"][name]), name
        assert torch.equal(expected["state_dict"][name], found["state_dict"][name]), name
    again = json.loads((run / "report.json").read_text())["figures"]
    assert {k: v for k, v in again.items() if k.startswith("val/")} == {
        k: v for k, v in figures.items() if k.startswith("val/")
    }


def test_averaging_does_not_change_the_training(fit, tmp_path, straight, capsys):
    fit("--run", tmp_path / "run")
    plain = checkpoint(tmp_path / "run")
    assert "weight_average" not in plain
    for name, tensor in plain["state_dict"].items():
        assert torch.equal(tensor, straight[0]["state_dict"][name]), name
    with pytest.raises(SystemExit):
        fit("--run", tmp_path / "run", "--ema.decay", 0.4, "--resume", "--trainer.max_steps", 9)
    assert re.search(r"ema.decay was None and is 0.4.*--init_from", capsys.readouterr().err)


def test_another_model_or_decay_is_refused():
    average = WeightAverage(torch.nn.Linear(3, 2), 0.9)
    with pytest.raises(ValueError, match=r"differ in .'scale', 'weight'"):
        average.restore({"bias": torch.zeros(2), "scale": torch.zeros(2)}, 1)
    for decay in (0, 1, 1.5):
        with pytest.raises(ValueError, match=r"ema\.decay must be between 0 and 1"):
            WeightEMA(decay)
