"""What tests of several rooms use."""

import os

import pytest


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
