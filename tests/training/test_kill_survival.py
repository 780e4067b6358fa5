"""SIGKILL, a few times; benchmarks/survival.py does it many times."""

import json
import os
import sys
from pathlib import Path

from worlds import forked

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# Runs are forked from a process without threads of its own, which pytest's is not.
TRAINING = """
from survival import kill_training
from survival_training import Setting
print(json.dumps(kill_training(Path(sys.argv[1]), 2, 1, (Setting(1, 2),))))
"""
SAVES = """
from survival_saves import kill_saves, save_plainly, save_safely
print(json.dumps([kill_saves(Path(sys.argv[1]) / s.__name__, 10, 1, s, (1, 16)) for s in (save_safely, save_plainly)]))
"""


def run(script, folder):
    head = f"import json, sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from pathlib import Path\n"
    command = [sys.executable, "-c", head + script, folder]
    done = forked.run(command, timeout=800, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_and_resumed_training_is_bitwise_the_same(tmp_path):
    """Two processes, each with a worker; without workers or a second process there is less that can go wrong."""
    (row,) = run(TRAINING, tmp_path)
    assert (row["workers"], row["processes"], row["kills"]) == (1, 2, 2)
    assert row["differences"] == []


def test_kills_during_a_save_leave_a_readable_checkpoint(tmp_path):
    ours, plain = run(SAVES, tmp_path)
    assert ours["kills"] == 10
    assert ours["unreadable"] == ours["lost"] == 0
    assert plain["unreadable"] > 0  # the test can fail
