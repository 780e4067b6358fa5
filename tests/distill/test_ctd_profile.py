"""`train_ctd.py fit --profile`: shares that add up, the bottleneck that is there, and no trace of a run."""

import gzip
import json
import time

import pytest

from liteframe.distill.clips import ClipDataset
from liteframe.models.teacher.base import Teacher

NAP = 0.05


def slowed(monkeypatch, owner, name, seconds):
    original = getattr(owner, name)

    def slow(self, *args, **kwargs):
        time.sleep(seconds)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


def profile(fit, run, *arguments):
    fit("--run", run, "--profile", 3, *arguments)
    return json.loads((run / "profile.json").read_text())


def test_time_goes_where_it_is_spent(fit, tmp_path, monkeypatch, capsys):
    """Two clips a batch: 0.5 s of decoding and 0.05 s of teaching a step are put in, and have to come out."""
    slowed(monkeypatch, ClipDataset, "__getitem__", 5 * NAP)
    slowed(monkeypatch, Teacher, "forward", NAP)
    record = profile(fit, tmp_path / "run")
    parts = {name: part["seconds_per_step"] for name, part in record["parts"].items()}
    assert sum(part["share"] for part in record["parts"].values()) == pytest.approx(1, abs=0.01)
    assert sum(parts.values()) == pytest.approx(record["seconds_per_step"], rel=0.01)
    assert record["seconds_per_step"] > 11 * NAP
    assert parts["data"] > 10 * NAP
    assert parts["teacher"] > NAP
    assert {"transfer", "pooling", "student", "backward", "optimizer", "logging"} <= parts.keys()
    assert max(parts, key=parts.get) == record["bottleneck"]["part"] == "data"
    printed = capsys.readouterr().out
    assert record["bottleneck"]["sentence"] in printed
    (trace,) = (tmp_path / "run" / "profile").glob("*.pt.trace.json.gz")
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"data", "teacher", "pooling", "student", "backward", "optimizer"} <= names


def test_accumulated_steps_leave_nothing_but_the_profile(fit, tmp_path, monkeypatch):
    run = tmp_path / "run"
    slowed(monkeypatch, Teacher, "forward", 3 * NAP)
    record = profile(fit, run, "--data.batch_size", 4, "--data.micro_batch_size", 2)
    assert record["bottleneck"]["part"] == "teacher"
    assert record["steps"] == 3
    assert record["accumulated"] == 2
    assert {path.name for path in run.iterdir()} == {"profile", "profile.json"}
    assert not list(run.rglob("*.ckpt"))


def test_a_resumed_run_is_not_profiled(fit, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit("--run", tmp_path / "run", "--profile", 3, "--resume")
    assert "leave out --resume" in capsys.readouterr().err
