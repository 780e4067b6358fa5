"""benchmarks/cpu_runtimes.py with small models: what is right is timed, what is wrong or missing is said."""

import json
import sys

import pytest
import torch
from worlds import ROOT
from worlds.students import make_student

from benchmarks import cpu_runtimes
from benchmarks.cpu_runtimes import DOCS, MARKERS, SMALL, fill, tables


def test_the_script_measures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # an extra
    threads = torch.get_num_threads()
    assert cpu_runtimes.main(["--small", "--threads", str(threads), "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "cpu_runtimes.json").read_text())
    assert {part["status"] for part in record["parts"].values()} == {"ok"}
    for name, frames in (("student", SMALL.frames), ("teacher", SMALL.teacher_frames)):
        rows = {(row["runtime"], row["precision"]): row for row in record["parts"][name]["rows"]}
        assert len(rows) == (9 if name == "student" else 7)
        for (runtime, precision), row in rows.items():
            if runtime == "OpenVINO":
                assert row["status"] == "skipped: openvino is not installed"
            elif precision != "int8" or row["status"] == "ok":
                assert row["ms_per_frame"] == pytest.approx(row["median_ms"] / frames)
        assert rows["torch eager", "float32"]["times_torch_eager"] == 1
        assert rows["torch eager", "float32"]["error"] == 0
        assert rows["onnxruntime", "float32"]["error"] < 1e-5 < rows["torch eager", "bfloat16"]["error"]
    steps = record["parts"]["ask"]["rows"]
    assert [row["precision"] for row in steps] == ["float32", "bfloat16"]
    for row in steps:
        named = [row[f"{step}_s"] for step in ("decode", "resize", "encode", "prefill", "rest")]
        assert sum(named) == pytest.approx(row["total_s"])
        assert min(named[:4]) > 0
    text = (tmp_path / "cpu_runtimes.md").read_text()
    assert "| onnxruntime | float32 |" in text
    assert "not measured on a GPU" not in text
    docs = tmp_path / "cpu.md"
    docs.write_text(DOCS.read_text())
    fill(docs, tables(record))
    before, after = (DOCS.read_text().split(mark)[place] for mark, place in zip(MARKERS, (0, 1), strict=True))
    assert docs.read_text() == before + MARKERS[0] + tables(record) + MARKERS[1] + after


def test_a_runtime_that_is_wrong_is_not_timed(tmp_path, monkeypatch):
    model, video = make_student(std=0.1).eval(), torch.randn(1, 8, 3, 64, 64)

    def odd(*given):
        yield "torch eager", "float32", lambda: cpu_runtimes.in_torch(model, video, torch.float32, False)
        yield "odd", "float32", lambda: lambda: 1.01 * exact
        yield "broken", "float32", lambda: 1 / 0

    with torch.inference_mode():
        exact = model(video)
    monkeypatch.setattr(cpu_runtimes, "candidates", odd)
    monkeypatch.setattr(cpu_runtimes, "built_in", lambda setup: [None, None, type("", (), {"build": lambda: model})])
    monkeypatch.setattr(torch, "randn", lambda *sizes: video)
    monkeypatch.setattr(cpu_runtimes, "in_torch", lambda *given: lambda: exact)
    rows = list(cpu_runtimes.measure("student", SMALL, tmp_path, lambda text: None))
    assert [row["status"] for row in rows] == ["ok", "wrong", "not here: failed: division by zero"]
    assert ["median_ms" in row for row in rows] == [True, False, False]


def test_the_committed_tables_are_of_one_record():
    path = ROOT / "benchmarks/cpu_runtimes.json"
    measured = DOCS.read_text().split(MARKERS[0])[1].split(MARKERS[1])[0]
    if path.is_file():
        record = json.loads(path.read_text())
        assert measured == tables(record)
        assert (ROOT / "benchmarks/cpu_runtimes.md").read_text() == cpu_runtimes.as_markdown(record)
    else:
        assert measured.startswith("Not measured yet")
