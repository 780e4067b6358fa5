"""Every kernel compiles for Ampere and Hopper without a GPU, and takes no more than it may."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
RECORD = Path(__file__).parents[2] / "benchmarks" / "ahead_of_time.json"


def run(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], env={**kept, **environment}, capture_output=True, text=True, timeout=600
    )


def names(record):
    return {(row["name"], row["arch"]) for row in record["rows"]}


def test_every_kernel_compiles_within_its_limits(tmp_path):
    child = run("-m", "liteframe_kernels.ahead_of_time", "-o", tmp_path / "record.json")
    assert child.returncode == 0, child.stdout + child.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert {row["arch"] for row in record["rows"]} == {80, 90}
    for row in record["rows"]:
        assert row["stack_bytes"] == 0, row
        assert row["registers"] <= 128, row
        assert row["loads_128"] >= row["loads_128_expected"] > 0, row
        assert row["stores_128"] >= row["stores_128_expected"], row
    committed = json.loads(RECORD.read_text())
    assert names(committed) == names(record), "write benchmarks/ahead_of_time.json again"


def test_refuses_the_interpreter(tmp_path):
    child = run("-m", "liteframe_kernels.ahead_of_time", "-o", tmp_path / "record.json", TRITON_INTERPRET="1")
    assert child.returncode == 2
    assert "TRITON_INTERPRET is set" in child.stderr


def test_sizes_of_one_and_huge_strides_compile():
    """Triton turns an argument of 1 into a constant and one beyond 2^31 into int64: both compile."""
    program = """
import dataclasses
from liteframe_kernels import ahead_of_time as aot
seen = set()
for variant in aot.variants():
    if variant.kernel in seen:
        continue
    seen.add(variant.kernel)
    integers = [name for name in variant.kernel.arg_names if aot._type(name) == "i32"]
    integers = [name for name in integers if name not in variant.constants | variant.config.kwargs]
    for kinds in (
        {name: "1" for name in integers if "stride" not in name and name != "C"},
        {name: "i64" for name in integers if "stride" in name},
    ):
        row = aot.compile_variant(dataclasses.replace(variant, arguments=kinds), 90)
        assert row.stack_bytes == 0, row
print(len(seen))
"""
    child = run("-c", program)
    assert child.stdout.strip() == "5", child.stdout + child.stderr


def test_problems_are_named():
    from liteframe_kernels import ahead_of_time

    fine = ahead_of_time.Row("k", 90, 4, 128, 0, 0, 4, 4, 4, 4)
    assert fine.problems() == []
    bad = dataclasses.replace(fine, registers=129, stack_bytes=8, loads_128=3)
    assert len(bad.problems()) == 3
