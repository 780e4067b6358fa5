"""Every kernel compiles for Ampere and Hopper without a GPU, and takes no more than it may."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder

pytest.importorskip("triton")
RECORD = Path(__file__).parents[2] / "benchmarks" / "ahead_of_time.json"


def run(*arguments, **environment):
    kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments], env={**kept, **environment}, capture_output=True, text=True, timeout=600
    )


def names(record):
    return {(row["name"], row["arch"]) for row in record["rows"]}


NARROW = (
    "unaligned",
    "5 taps bfloat16",
    "5 taps, mixed",
    "backward 1x3x3",
    "forward 1x3x3 bfloat16 TILE=512",
    "residual_norm backward",
)


def test_every_launch_compiles_within_its_limits(tmp_path):
    child = run("-m", "liteframe_kernels.ahead_of_time", "-o", tmp_path / "record.json")
    assert child.returncode == 0, child.stdout + child.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert {row["arch"] for row in record["rows"]} == {80, 90}
    for row in record["rows"]:
        assert row["stack_bytes"] == 0, row
        assert row["registers"] <= 128, row
        assert row["loads_128"] >= row["loads_128_expected"], row
        assert row["stores_128"] >= row["stores_128_expected"], row
        assert row["loads_128_expected"] > 0 or any(name in row["name"] for name in NARROW), row
    committed = json.loads(RECORD.read_text())
    assert names(committed) == names(record), "write benchmarks/ahead_of_time.json again"
    for arch in (80, 90):
        for dtype in ("float32", "bfloat16"):
            found = {name for name, of in names(record) if of == arch and dtype in name.split()}
            for kernel in ("temporal_conv", "strided_conv"):
                assert any(name.startswith(f"{kernel} forward") for name in found)
                for gradients in ("", ", of x only", ", of parameters only"):
                    stage = " 2x2x2" if kernel == "strided_conv" else ""
                    assert f"{kernel} backward{stage}{gradients} {dtype}" in found
            assert f"weighted_average_pool forward, query {dtype}" in found
            for direction in ("forward", "backward"):
                for conv in ("", ", no conv"):
                    assert f"residual_norm {direction}{conv} {dtype}" in found
        for direction in ("forward", "backward"):  # what autocast makes of a training step
            assert (f"residual_norm {direction}, mixed bfloat16", arch) in names(record)


def test_launches_have_the_dtypes_of_training_and_of_a_converted_model(monkeypatch):
    """What reaches the kernels of a small student, counted where they choose their backend."""
    from liteframe_kernels import ahead_of_time

    seen = set()

    def spy(function, x, backend):
        seen.add((function, x.dtype))
        return False

    for room in ("residual_norm", "strided_conv"):
        monkeypatch.setattr(importlib.import_module(f"liteframe_kernels.{room}.op"), "use_triton", spy)
    small = {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "image_size": 28, "teacher_dim": 16}
    encoder = LiteFrameEncoder(LiteFrameConfig(**small, downsample={1: (2, 2, 2), 2: (2, 1, 1)}))
    video = torch.randn(1, 4, 3, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        encoder(video).sum().backward()
    assert seen == {("residual_norm", torch.float32), ("strided_conv", torch.float32)}
    encoder.bfloat16()(video.bfloat16())
    launched = {(launch.name.split()[0], launch.dtype) for launch in ahead_of_time.launches()}
    assert len(seen) == 4
    assert seen <= launched


def test_sizes_of_one_and_views_are_launched():
    from liteframe_kernels import ahead_of_time

    launched = {launch.name for launch in ahead_of_time.launches()}
    for direction in ("forward", "backward"):
        for case in ("one frame", "one token", "far apart", "unaligned"):
            assert f"temporal_conv {direction}, {case}" in launched
            assert case == "far apart" or f"residual_norm {direction}, {case}" in launched
        assert f"strided_conv {direction} 2x2x2, one window" in launched


def test_refuses_the_interpreter(tmp_path):
    child = run("-m", "liteframe_kernels.ahead_of_time", "-o", tmp_path / "record.json", TRITON_INTERPRET="1")
    assert child.returncode == 2
    assert "TRITON_INTERPRET is set" in child.stderr


def test_problems_are_named():
    from liteframe_kernels import ahead_of_time

    fine = ahead_of_time.Row("k", 90, 4, 128, 0, 0, 4, 4, 4, 4)
    assert fine.problems() == []
    bad = dataclasses.replace(fine, registers=129, stack_bytes=8, loads_128=3)
    assert len(bad.problems()) == 3
