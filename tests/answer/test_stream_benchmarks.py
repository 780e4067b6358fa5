"""benchmarks/stream_soak.py and stream_hour.py: committed tables are those of committed records; short runs of both."""

import importlib
import json

import pytest
from worlds import ROOT

from liteframe.answer import sources


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize("name", ["stream_hour", "stream_soak"])
def test_the_committed_table_comes_from_the_committed_record(benchmark, name):
    facts = json.loads((ROOT / f"benchmarks/{name}.json").read_text())
    assert (ROOT / f"benchmarks/{name}.md").read_text() == benchmark(name).table(facts)


def test_what_an_hour_holds_is_counted(benchmark, tmp_path, monkeypatch):
    """Bytes by arithmetic are those that sessions hold; an hour of a 7B model as published sizes give it."""
    stream_hour = benchmark("stream_hour")
    monkeypatch.setattr(stream_hour, "MEMORIES", ("all", "random:64", "sink_window:64", "saliency:64"))
    stream_hour.main(["--frames", "96", "-o", str(tmp_path)])
    facts = json.loads((tmp_path / "stream_hour.json").read_text())
    for row in facts["memories"]:
        assert row["expected_bytes"] in (None, row["bytes"])
    whole, window, cache = (stream_hour.large(name, 900) for name in stream_hour.MEMORIES_7B)
    assert whole["tokens"] == 57_600
    assert whole["bytes"] / 2**20 == pytest.approx(394, abs=2)
    assert stream_hour.entry_bytes(1, 28, 4, 128, 2) - 28 * 40 == 57_344
    assert window["read_first"] == 6144 + 96 * 2
    assert cache["read_first"] == 0


def test_a_camera_that_fails_is_followed(benchmark, tmp_path, monkeypatch):
    stream_soak = benchmark("stream_soak")
    monkeypatch.setattr(sources, "WAIT", 0.6)  # so that a silence lasts until it is said
    monkeypatch.setattr(stream_soak, "TIMES", 1)
    stream_soak.main(["--frames", "240", "--memories", "window:64", "--stall", "0.4", "-o", str(tmp_path)])
    (row,) = json.loads((tmp_path / "stream_soak.json").read_text())["memories"]
    assert row["faults"] == dict.fromkeys(stream_soak.FAULTS, 1)
    assert all(row["said"][fault] >= 1 for fault in ("cut", "damage", "jump"))
    assert row["said"]["silence"] + row["said"]["cut"] >= 2  # while frames still wait, it is a connection that is lost
    assert row["marks"][-1]["frames"] >= 240
    assert max(mark["tokens"] for mark in row["marks"]) == 64
    assert row["answers"] == 19
