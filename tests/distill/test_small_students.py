"""benchmarks/small_students.py, a tiny run of it, and its table on made-up outcomes."""

import json
import math

import pytest
import torch

from benchmarks.small_students import Arm, Setup, from_teacher, main, make_world, spread, table, train

TINY = Setup(large=32, small=(16,), steps=2, rates=(2e-3,), seeds=(0,), clips=4, held_out=2, batch=2)


def test_tiny_run_writes_record_and_table(tmp_path):
    main(tmp_path, TINY)
    record = json.loads((tmp_path / "small_students.json").read_text())
    # The larger student, two starts with and without clipping, and a longer run.
    assert len(record["runs"]) == 1 + 4 + 1
    assert {row["arm"]["start"] for row in record["runs"]} == {"larger", "direct", "progressive"}
    for row in record["runs"]:
        assert row["cosine"].keys() == {"half", "half_ema", "end", "end_ema"}
        assert math.isfinite(row["gradient_norm"])
    lines = (tmp_path / "small_students.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert {line.count("|") for line in rows} == {13}


@pytest.fixture(scope="module")
def world():
    return make_world(TINY)


def test_a_run_that_explodes_is_called_lost(world):
    steps = 12
    fine = train(world, TINY, Arm(16, "direct", 2e-3, 1.0, steps), from_teacher(world, 16), 0)
    wild = train(world, TINY, Arm(16, "direct", 1e4, 0.0, steps), from_teacher(world, 16), 0)
    assert not fine.lost
    assert wild.lost
    assert wild.rose
    assert not wild.final_loss < 10 * wild.first_loss
    broken = from_teacher(world, 16)
    with torch.no_grad():
        broken.head.bias[3] = math.nan
    outcome = train(world, TINY, Arm(16, "direct", 2e-3, 1.0, steps), broken, 0)
    assert outcome.lost
    assert outcome.cosine == {}


def test_spread_is_of_all_seeds_or_none():
    assert spread([0.5, 0.7, 0.9]) == "0.700 ± 0.200"
    assert spread([0.5, None]) == "-"


def test_table_counts_seeds():
    arm = {"dim": 16, "start": "direct", "rate": 0.2, "clip_norm": 0.0, "steps": 7}
    ends = {"half": 0.1, "half_ema": 0.2, "end": 0.3, "end_ema": 0.4}
    runs = [
        {"arm": arm, "seed": 0, "lost": True, "rose": True, "gradient_norm": 1e6, "cosine": {}},
        {"arm": arm, "seed": 1, "lost": False, "rose": True, "gradient_norm": 3.0, "cosine": ends},
    ]
    record = {
        "date": "today", "platform": "here", "device": "cpu", "threads": 1, "versions": {"torch": "2"},
        "cpu_seconds": 1,
        "setup": {"seeds": [0, 1], "clips": 4, "batch": 2, "held_out": 2, "decay": 0.9}, "parameters": {16: 1234},
        "runs": runs,
    }  # fmt: skip
    last = table(record).splitlines()[-1]
    assert last == "| 16 (1,234) | direct | 7 | 0.2 | none | 1 of 2 | 2 of 2 | 1e+06 | - | - | - | - |"
