"""Committed records of the benchmarks of training from what is kept: their tables, and what docs say of them."""

import json
import re
import runpy
from itertools import pairwise
from statistics import median

import pytest
from worlds import ROOT

BENCHMARKS = ROOT / "benchmarks"


def record_of(name):
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["token_cache", "reference_log_probs"])
def test_a_committed_table_is_that_of_its_record(name):
    made = runpy.run_path(str(BENCHMARKS / f"{name}.py"))["as_markdown"](record_of(name))
    assert (BENCHMARKS / f"{name}.md").read_text() == made


def test_a_token_cache_is_faster_and_learns_the_same():
    rows = record_of("token_cache")["rows"]
    speed = [row for row in rows if row["part"] == "speed"]
    assert all(row["loss_difference"] <= 1e-5 and row["adapter_difference"] <= 1e-5 for row in speed)
    assert len(speed) >= 2
    assert all(row["cached"] > 2 * row["live"] for row in speed)
    padding = {(row["micro_batch"], row["grouped"]): row["padding"] for row in rows if row["part"] == "padding"}
    assert {micro for micro, _ in padding} == {2, 4, 8}
    assert all(padding[micro, True] < 0.05 < padding[micro, False] for micro, _ in padding)
    peaks = [row for row in rows if row["part"] == "memory" and not row["checkpointing"]]
    assert len(peaks) == 3
    assert all(a["tokens"] < b["tokens"] and a["peak_mib"] < b["peak_mib"] for a, b in pairwise(peaks))


def test_a_kept_reference_saves_its_forward_pass():
    record = record_of("reference_log_probs")
    seconds = {way: median(row["seconds_per_step"] for row in record["rows"] if row["way"] == way)
               for way in ("computed", "filled")}  # fmt: skip
    said = re.search(r"takes (\d\.\d\d) of the time", (ROOT / "docs/prefer.md").read_text())
    assert f"{seconds['filled'] / seconds['computed']:.2f}" == said.group(1)
    assert record["adapter_difference"] <= 1e-6
