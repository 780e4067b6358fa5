"""Steps that would harm the student are skipped as if they had not been, and too many of them stop the run."""

import json
import math

import pytest
import torch

from liteframe.cli.main import main as liteframe
from liteframe.distill.module import CTDModule
from liteframe.training.guarded_module import GuardedModule


def saved(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def rows(run):
    return [json.loads(line) for line in (run / "skipped_steps.jsonl").read_text().splitlines()]


def spoil(monkeypatch, where, steps, value=math.nan):
    """Put `value` into the frames, the target or the prediction of some steps."""
    original = CTDModule.step_loss

    def frames(self, batch):
        if self.global_step in steps:
            batch.video[0, 0, 0, 0, 0] = value
        return original(self, batch)

    def output(part):
        forward = getattr(CTDModule, part)

        def wrapped(self, *args):
            result = forward(self, *args)
            if self.training and self.global_step in steps:
                (result[0] if isinstance(result, tuple) else result).data.flatten()[3] = value
            return result

        return wrapped

    if where == "frames":
        monkeypatch.setattr(CTDModule, "step_loss", frames)
    else:
        part = {"target": "pooled_target", "prediction": "encode"}[where]
        monkeypatch.setattr(CTDModule, part, output(part))


@pytest.mark.parametrize(("where", "value"), [("frames", math.nan), ("target", math.inf), ("prediction", math.nan)])
def test_a_skipped_step_leaves_weights_and_moments_alone(fit, tmp_path, monkeypatch, where, value):
    steps = {}

    def note(self, outputs, batch, batch_idx):
        state = [value for entry in self.optimizers().state.values() for value in entry.values()]
        steps[self.global_step - 1] = [t.clone() for t in (*self.student.parameters(), *state)]

    monkeypatch.setattr(CTDModule, "on_train_batch_end", note)
    spoil(monkeypatch, where, {4}, value)
    fit("--run", tmp_path / "run")
    assert len(steps) == 7
    for step in range(1, 7):
        same = all(map(torch.equal, steps[step], steps[step - 1]))
        assert same == (step == 4)
    (row,) = rows(tmp_path / "run")
    assert (row["step"], row["cause"]) == (4, where)
