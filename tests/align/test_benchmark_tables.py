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


def test_a_token_cache_is_faster_and_learns_the_same_as_docs_say():
    said = (ROOT / "docs/token_cache.md").read_text()
    rows = record_of("token_cache")["rows"]
    speed = [row for row in rows if row["part"] == "speed"]
    ratios = [row["cached"] / row["live"] for row in speed]
    assert len(ratios) >= 2
    assert min(ratios) > 1
    assert f"{' and '.join(f'{ratio:.2f}' for ratio in ratios)} times as many" in said
    assert all(row["loss_difference"] == row["adapter_difference"] == 0 for row in speed)  # "to the bit"
    padding = {(row["micro_batch"], row["grouped"]): row["padding"] for row in rows if row["part"] == "padding"}
    for grouped, words in ((False, "as rows come"), (True, "grouped by length")):
        one, two, three = (f"{padding[micro, grouped] * 100:.1f} %" for micro in (2, 4, 8))
        assert f"{one}, {two} and {three} {words}" in said
    assert all(padding[micro, True] < 0.05 < padding[micro, False] for micro in (2, 4, 8))
    plain, checkpointed = (
        [(row["tokens"], row["peak_mib"]) for row in rows if row["part"] == "memory" and row["checkpointing"] is way]
        for way in (False, True)
    )
    assert all(one < other and low < high for (one, low), (other, high) in pairwise(plain))
    (short, least), (long, most) = plain[0], plain[-1]
    assert f"{least:,.0f} MiB at rows of {short:,} tokens, {most:,.0f} MiB at {long:,}; with gradient" in said
    assert f"checkpointing {checkpointed[0][1]:,.0f} and {checkpointed[-1][1]:,.0f}" in said


def test_a_kept_reference_saves_its_forward_pass():
    record = record_of("reference_log_probs")
    seconds = {way: median(row["seconds_per_step"] for row in record["rows"] if row["way"] == way)
               for way in ("computed", "filled")}  # fmt: skip
    said = re.search(r"takes (\d\.\d\d) of the time", (ROOT / "docs/prefer.md").read_text())
    assert f"{seconds['filled'] / seconds['computed']:.2f}" == said.group(1)
    assert record["adapter_difference"] <= 1e-6
