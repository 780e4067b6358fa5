"""benchmarks/elastic.py at its smallest, stopped and continued; and the committed page follows from its record."""

import json

import pytest
from worlds import ROOT

from liteframe.models.student.config import LiteFrameConfig


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import elastic

    return elastic


def test_it_goes_on_where_it_was_stopped(benchmark, tmp_path, monkeypatch):
    worlds = benchmark.Worlds(scenes=1, batch=2, statistics_clips=2, test_scenes=1, timing_runs=1)
    setup = benchmark.Setup(steps=1, more=(1,), seeds=(0,), worlds=worlds)
    done, shown = benchmark.done, set()
    # Answers and times are those of claims.py and compare, which have tests of their own.
    monkeypatch.setattr(benchmark, "asked", lambda system, film, n: shown.add((system.encoder.clip_frames, n)) or "01")
    monkeypatch.setattr(
        benchmark, "time_points", lambda points, runs: ({n: {"total": 2, "tower": 1} for n in points}, {})
    )

    def killed(bench, setup, arm, steps, seed):
        if arm == "single, on":
            raise KeyboardInterrupt
        return done(bench, setup, arm, steps, seed)

    monkeypatch.setattr(benchmark, "done", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(tmp_path / "work", tmp_path, setup)
    calls = []
    monkeypatch.setattr(benchmark, "done", lambda *of, **cell: (calls.append(cell["arm"]), done(*of, **cell))[1])
    benchmark.main(tmp_path / "work", tmp_path, setup)
    assert calls == ["single, on", "elastic"]
    record = json.loads((tmp_path / "elastic.json").read_text())
    by_arm = {(cell["cell"]["arm"], cell["cell"]["steps"]): cell for cell in record["cells"]}
    # An upgrade without a step says in 16x what the student of 16x says, to rounding.
    assert by_arm["elastic", 0]["cosine"]["16x"] == pytest.approx(by_arm["single", 1]["cosine"]["16x"], abs=1e-5)
    assert list(by_arm["elastic", 0]["right"]["64x"]) == ["frames"]
    assert list(by_arm["elastic", 1]["cosine"]) == ["4x", "8x", "16x", "32x", "64x"]
    assert shown == {(16, frames) for frames in (4, 8, 16, 32, 64)}
    assert "| 64x | (4, 4, 4) | 0.25 | 2 | 1 |" in (tmp_path / "elastic.md").read_text()
    with pytest.raises(ValueError, match="cells of another setup"):
        benchmark.main(tmp_path / "work", tmp_path, benchmark.Setup(steps=2))


def test_the_committed_page_is_that_of_its_record(benchmark):
    record = json.loads((ROOT / "benchmarks" / "elastic.json").read_text())
    shape = LiteFrameConfig(**benchmark.ELASTIC["student"])
    assert benchmark.report(record, shape) == (ROOT / "benchmarks" / "elastic.md").read_text()
