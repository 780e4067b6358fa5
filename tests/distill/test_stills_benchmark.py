"""benchmarks/stills.py: a tiny run that goes on where it was, and the committed table."""

import json

import pytest
from worlds import ROOT
from worlds.students import student_config

from liteframe import cost


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import stills

    return stills


def test_a_tiny_run_goes_on_with_the_next_seed(bench, tmp_path):
    students = bench.Setup(scenes=1, steps=1, batch=2, statistics_clips=2, test_scenes=1)
    sizes = bench.Sizes(students, student_config(), runs=1)
    bench.main(tmp_path / "work", tmp_path, sizes, seeds=(1,))
    first = json.loads((tmp_path / "stills.json").read_text())
    bench.main(tmp_path / "work", tmp_path, sizes, seeds=(1, 2))
    record = json.loads((tmp_path / "stills.json").read_text())
    assert record["cosine"][0] == first["cosine"][0]
    assert [(row["seed"], row["stills"]) for row in record["cosine"]] == [(1, 3), (2, 3)]
    assert all(row["still"] != row["repeated"] for row in record["cosine"])
    still = cost(student_config(), still=True, frames=1)
    assert record["flops"]["still"] == still.flops + still.attention_flops < record["flops"]["repeated"]
    assert (tmp_path / "stills.md").read_text().count("\n| ") == 3


def test_the_committed_table_is_that_of_the_record(bench):
    record = json.loads((ROOT / "benchmarks" / "stills.json").read_text())
    assert (ROOT / "benchmarks" / "stills.md").read_text() == bench.as_markdown(record)
