"""How tests start runs of two processes, and read what they leave behind."""

import json
import os
import shlex
import socket
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worlds import ROOT
from worlds.forked import SOURCES, Program

MANY_RUNS = ROOT / "tests" / "distributed" / "many_runs.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES}


def start(*command, **environment):
    """A program of this Python in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env={**ENVIRONMENT, **environment}, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def fork(*command, **environment):
    """As start, by a process that has imported everything."""
    return Program([sys.executable, *command], cwd=ROOT, env={**ENVIRONMENT, **environment})


def documented(line, changes, config, run, *more):
    """Words that Python takes to do what a line of docs/many_gpus.md does, in a tiny run.

    Args:
        line: how the line starts.
        changes: words to put in the place of others.
        config: the run's configuration.
        run: its folder.
        more: further words.
    """
    lines = (ROOT / "docs" / "many_gpus.md").read_text().splitlines()
    (found,) = [text for text in lines if text.startswith(line)]
    changes = {**changes, "configs/ctd/internvl3_8b.yaml": config, "runs/ctd": run}
    words = [str(changes.get(word, word)) for word in shlex.split(found)]
    if words[0] == "torchrun":
        words = ["-m", "torch.distributed.run", *words[1:]]
    else:
        words = words[words.index("python") + 1 :]
    return [*words, *map(str, more)]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(process, seconds=500):
    """What a program wrote to stderr; kills its whole group where it does not end in time."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        pytest.fail(f"still running after {seconds} s:\n{process.communicate()[1]}")


def report(run):
    return json.loads((run / "report.json").read_text())


def curve(run, name):
    """A logged figure by step; a resumed run has several files of events."""
    values = {}
    for path in sorted(run.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(path)).Reload()
        if name in events.Tags()["scalars"]:
            values.update({event.step: event.value for event in events.Scalars(name)})
    return values


def assert_same_training(run, alone, stopped=None):
    """Every logged loss, gradient norm and held-out figure, and the final weights.

    A run that was told to stop in step `stopped` leaves before this step is logged.
    """
    for name in ("train/loss", "train/gradient_norm", "train/cosine", "val/token_cosine"):
        expected = {step: value for step, value in curve(alone, name).items() if step != stopped}
        assert curve(run, name) == pytest.approx(expected, rel=1e-4), name
        assert len(expected) >= 2, name
    ours, theirs = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (run, alone))
    assert ours["global_step"] == theirs["global_step"]
    for part in ("state_dict", "weight_average"):
        mine, other = (state[part] if part == "state_dict" else state[part]["weights"] for state in (ours, theirs))
        assert mine.keys() == other.keys()
        for name, tensor in other.items():
            # Where a gradient is all but zero, AdamW makes a whole step of a rounding error.
            difference = (mine[name].float() - tensor.float()).abs()
            assert difference.max() < 1e-3, name
            assert difference.mean() < 2e-5, name
