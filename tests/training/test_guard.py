"""Which steps are skipped: the rule itself, and that two ranks keep it alike."""

import json
import math
import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from worlds.forked import Program

from liteframe.training.guard import SKIPPED_STEPS, GradientGuard, GuardSettings


def test_a_spike_is_far_above_the_median_of_the_last_taken_steps():
    draw = np.random.default_rng(0)
    settings = GuardSettings(factor=4, window=9, warmup=5)
    guard, taken = GradientGuard(settings), []
    for norm in draw.lognormal(0, 1.2, 300):
        spike = guard.is_spike(norm)
        assert spike == (len(taken) >= 5 and norm > 4 * np.median(taken[-9:]))
        if not spike:
            taken.append(norm)
            guard.take(norm)
    assert 3 < 300 - len(taken) < 100
    assert math.isnan(GradientGuard(settings).median)


def test_one_skip_too_many_in_the_window():
    guard = GradientGuard(GuardSettings(max_skipped=2, within=10))
    assert [guard.skip(step) for step in (0, 5, 10, 15, 19, 30)] == [False, False, False, False, True, False]
    assert guard.skipped == 6


def test_the_state_resumes():
    settings = GuardSettings(factor=2, window=8, warmup=4, max_skipped=1, within=10)
    norms = [*np.random.default_rng(1).lognormal(0, 0.7, 60)]

    def judge(guard, start, stop):
        verdicts = []
        for step in range(start, stop):
            spike = guard.is_spike(norms[step])
            verdicts.append((spike, guard.skip(step) if spike else guard.take(norms[step])))
        return verdicts

    straight, first, second = GradientGuard(settings), GradientGuard(settings), GradientGuard(settings)
    expected = judge(straight, 0, 60)
    before = judge(first, 0, 23)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + judge(second, 23, 60) == expected
    assert {(True, False), (True, True), (False, None)} <= set(expected)


@pytest.mark.parametrize(
    ("values", "name"),
    [({"factor": 1.0}, "factor"), ({"factor": math.nan}, "factor"), ({"warmup": 0}, "warmup"),
     ({"window": 10}, "warmup"), ({"max_skipped": 100}, "max_skipped"), ({"max_skipped": -1}, "max_skipped")],
)  # fmt: skip
def test_settings_that_cannot_guard_are_refused(values, name):
    with pytest.raises(ValueError, match=rf"guard\.{name}"):
        GuardSettings(**values)


STRATEGIES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """The folder of a run of guard_ranks.py for each strategy, one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("guard")
    for strategy in STRATEGIES:
        (folder / strategy).mkdir()
        (folder / strategy / "config.yaml").write_text("{}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "guard", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2",
    }  # fmt: skip
    script = Path(__file__).with_name("guard_ranks.py")
    ranks = [
        Program(
            [sys.executable, script, folder, *STRATEGIES],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_on_one_rank_skips_the_step_on_both(two_ranks, strategy):
    run = two_ranks / strategy
    zero, one = (json.loads((run / f"rank{rank}.json").read_text()) for rank in range(2))
    assert zero == one
    history = zero["history"]
    assert len(history) == 4  # step 4 stopped both
    assert [history[step] == history[step - 1] for step in (1, 2, 3)] == [False, True, False]
    assert all(math.isfinite(value) for weights in history[-1] for value in weights)
    assert zero["skipped"] == 2
    assert "a frame of the batch is not" in zero["stopped"]
    rows = [json.loads(line) for line in (run / SKIPPED_STEPS).read_text().splitlines()]
    assert [(row["step"], row["cause"], [clip["path"] for clip in row["clips"]]) for row in rows] == [
        (2, "frames", ["1.mp4"]),
        (4, "frames", ["1.mp4"]),
    ]
    dump = run / "dumps" / "step_000004"
    batches = [load_file(dump / f"batch_{rank}.safetensors") for rank in range(2)]
    assert [bool(tensors["0.x"].isfinite().all()) for tensors in batches] == [True, False]
    assert [json.loads((dump / f"batch_{rank}.json").read_text()) for rank in range(2)] == [[{"keys": [[0, 4]]}]] * 2
    assert sorted(clip["path"] for clip in json.loads((dump / "state.json").read_text())["clips"]) == ["0.mp4", "1.mp4"]
    weights = load_file(dump / "weights.safetensors")
    assert [weights[f"layer.{name}"].flatten().tolist() for name in ("weight", "bias")] == history[-1]
