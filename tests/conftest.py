"""What tests of several rooms use."""

import os
from contextlib import ExitStack

import pytest
from worlds.forked import PLACE, forking

# Read when torch is imported, here and in what tests start. What is compiled here is compiled once: a pool of processes
# for it, a memory of what was traced before, and a well optimized wrapper cost more than they save.
os.environ |= {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "TORCH_FAKE_TENSOR_DISPATCH_CACHE": "0",
    "AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL": "O0",
}

# Files that take longest go first, or the last one of them would run alone when the other processes have nothing left.
LONGEST = (
    *("test_graphs.py", "test_readme.py", "test_two_processes.py", "test_lma_training.py", "test_ahead_of_time.py"),
    *("test_demo.py", "test_triton_interpreter.py", "test_speed.py", "test_exports.py", "test_every_family.py"),
    *("test_one_rank_fails.py", "test_lma_8b_benchmark.py", "test_lmms_eval.py", "test_gpu_rehearsal.py"),
    *("test_kill_survival.py", "test_cached_benchmark.py", "test_lma_stages.py", "test_ctd_run.py", "test_bytes.py"),
    *("test_cache_kill.py", "test_quality_for_cost.py", "test_swap_guide.py", "test_guard.py"),
)


def pytest_configure(config: pytest.Config) -> None:
    """One process that forks serves all processes of pytest."""
    if PLACE not in os.environ:
        stack = ExitStack()
        stack.enter_context(forking())
        config.add_cleanup(stack.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of LONGEST, then all others as they are."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture
def reload_in_forks():
    from worlds.exports import reloading_in_forks  # torch, for which the lines above are

    with reloading_in_forks():
        yield


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """The environment of a SLURM job; its scontrol writes down what it is asked for. Call it to read that."""
    calls, stub = tmp_path / "scontrol_calls", tmp_path / "stub" / "scontrol"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexit ${{STUB_EXIT:-0}}\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": 4711, "JOB_NAME": "ctd", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    return lambda: calls.read_text().splitlines() if calls.exists() else []
