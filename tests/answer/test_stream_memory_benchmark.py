"""benchmarks/stream_memory.py: the committed table is that of the committed record; what is held is bounded."""

import json

from worlds import ROOT

from benchmarks import stream_memory


def test_the_committed_table_comes_from_the_committed_record():
    facts = json.loads((ROOT / "benchmarks/stream_memory.json").read_text())
    assert (ROOT / "benchmarks/stream_memory.md").read_text() == stream_memory.table(facts)
    assert [row["memory"] for row in facts["memories"]] == list(stream_memory.MEMORIES)
    for row in facts["memories"]:
        assert max(mark["tokens"] for mark in row["marks"]) <= 256
        assert row["marks"][-1]["frames"] == facts["frames"]


def test_one_memory_runs(tmp_path):
    stream_memory.main(["--frames", "300", "--memories", "sink_window:64", "-o", str(tmp_path)])
    facts = json.loads((tmp_path / "stream_memory.json").read_text())
    assert facts["memories"][0]["marks"][-1] | {"bytes": 0, "process_peak_mib": 0} == {
        "frames": 300,
        "tokens": 64,
        "bytes": 0,
        "process_peak_mib": 0,
    }
    assert "| sink_window:64 | 64, 64 |" in (tmp_path / "stream_memory.md").read_text()
