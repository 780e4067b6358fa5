"""benchmarks/high_resolution.py measures what it says, and its committed table is its own."""

import json

import pytest
from worlds import ROOT

from benchmarks import high_resolution
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.cost import cost


def test_the_committed_table_is_of_its_record():
    record = json.loads((ROOT / "benchmarks/high_resolution.json").read_text())
    assert high_resolution.as_markdown(record) == (ROOT / "benchmarks/high_resolution.md").read_text()
    assert record["counted"] == [high_resolution.counted(size) for size in high_resolution.COUNTED]


def test_crops_cost_what_so_many_small_frames_cost():
    small = cost(LiteFrameConfig(), 16)
    row = high_resolution.counted(1344)
    assert row["crops"]["flops"] == 10 * (small.flops + small.attention_flops)
    with pytest.raises(ValueError, match="no multiple of a view's 448"):
        high_resolution.counted(500)


def test_a_case_is_measured():
    found = high_resolution.measure("crops", 448)
    assert found["seconds"] > 0
    assert found["mib"] >= 0
