"""An error on one rank ends all of them, soon and visibly, although the others wait for it in a collective."""

import json
import os
import time

from worlds.processes import MANY_RUNS, finish, fork

# Lightning looks after its children every five seconds; a loaded machine takes long to import.
SECONDS = 90


def test_error_on_either_rank_ends_both(config, tmp_path):
    """Both cases at once, in processes that Lightning starts itself."""
    processes = []
    for rank in range(2):
        arguments = ["--config", config, "--run", tmp_path / f"run{rank}", "--trainer.devices", 2,
                     "--trainer.strategy", "ddp"]  # fmt: skip
        plan = [{"program": "ctd", "arguments": [str(word) for word in arguments], "raise": [rank, 2]}]
        (tmp_path / f"plan{rank}.json").write_text(json.dumps(plan))
        processes.append(fork(MANY_RUNS, tmp_path / f"plan{rank}.json"))
    begun = [wait_for(tmp_path / f"run{rank}" / "checkpoints" / "last.ckpt") for rank in range(2)]
    for rank, process in enumerate(processes):
        errors = finish(process)
        assert time.monotonic() - begun[rank] < SECONDS
        assert process.returncode != 0
        assert f"RuntimeError: rank {rank} breaks on purpose" in errors
        assert not group_is_alive(process.pid), errors


def wait_for(path, seconds=400):
    """When a run has made its first step."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists()
    return time.monotonic()


def group_is_alive(group, seconds=20):
    """Whether a process of this group goes on for some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.2)
    os.killpg(group, 9)
    return True
