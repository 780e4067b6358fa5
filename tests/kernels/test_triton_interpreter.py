"""Runs the checks of the Triton kernels in a process where Triton interprets them (no GPU needed)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
CHECKS = sorted((Path(__file__).parent / "interpreted").glob("check_*.py"))


def test_all_checks_pass_in_the_interpreter():
    """One process for all files: each would import torch and triton anew."""
    assert len(CHECKS) == 5
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, CHECKS)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr
