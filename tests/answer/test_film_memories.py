"""benchmarks/film_memories.py: a table by hand, a short run that goes on, and the committed page."""

import importlib
import json

import pytest
from worlds import ROOT

from liteframe.toyworld import films


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def cell(memory, world, rights):
    """Four questions about the past and four about the present of one film, each with two candidates."""
    rows = [["EPM" if n < 4 else "ATR", n < 4, int(right), 2, 20 * n] for n, right in enumerate(rights)]
    held = [[8, 256, 1000, 4096], [16, 256, 1024, 4096]]
    return {"film": [8, world, 0], "memory": memory, "rows": rows, "held": held, "cpu_seconds": 1.0}


def test_verdicts_by_hand(benchmark):
    report = benchmark("film_memories_report")
    cells = [cell("window", world, "00001111") for world in range(6)]
    cells += [cell("halving", world, "11111000") for world in range(6)]
    cells += [cell("bank", world, "00001111") for world in range(6)]
    facts = {"cells": cells, "budget": 256, "date": "2026-12-01", "device": "cpu", "versions": {"torch": "2"}}
    page = report.table(facts)
    halving = next(line for line in page.splitlines() if line.startswith("| halving |"))
    assert "100 (61 to 100)" in halving
    assert "+100.0 (+100.0 to +100.0)" in halving
    assert "25 (" in halving
    assert "-75.0" in halving
    assert halving.endswith("1012, 1024 |")
    window = next(line for line in page.splitlines() if line.startswith("| window |"))
    assert [cell.split(" (")[0] for cell in window.split(" | ")[4:8]] == ["0", "0", "", "100"]
    assert "| EPM | 0 | 100 | 50 |" in page
    assert "| by chance | 50 |  |  | 50 | 50 |  | 50 |" in page
    verdicts = {line.split(" | ")[0][2:]: line.split(" | ")[-1][:-2] for line in page.splitlines()}
    assert verdicts["Slots at even distances remember the past better than a recent window"] == "holds"
    assert verdicts["Halving costs nothing in the present"] == "refuted"
    assert "no difference" in verdicts["Merged neighbors remember the past better than a recent window (MA-LMM)"]


def test_the_committed_page_comes_from_the_committed_record(benchmark):
    facts = json.loads((ROOT / "benchmarks/film_memories.json").read_text())
    assert (ROOT / "benchmarks/film_memories.md").read_text() == benchmark("film_memories_report").table(facts)


def test_a_run_goes_on(benchmark, tmp_path, monkeypatch, loaded):
    """With a random model that knows no word of films: answers are worthless, the budget holds."""
    run = benchmark("film_memories")
    monkeypatch.setattr(run, "load_film_model", lambda model, encoder: loaded["liteframe_internvl"])
    monkeypatch.setattr(run, "FILMS", {2: 1})
    monkeypatch.setattr(run, "MOMENTS", 1)
    monkeypatch.setattr(run, "SEEDS", (0,))
    chosen = ("window", "saliency")
    monkeypatch.setattr(run, "names_of", lambda scenes: list(chosen[: len(asked)]))
    questions = films.film_questions
    monkeypatch.setattr(run, "film_questions", lambda *a, **k: [q for q in questions(*a, **k) if q.task == "ATR"])
    asked = [1]
    words = ["any", "--scenes", "2", "--work", str(tmp_path / "work"), "-o", str(tmp_path)]
    run.main(words)
    asked.append(1)
    run.main(words)
    cells = json.loads((tmp_path / "film_memories.json").read_text())["cells"]
    assert [cell["memory"] for cell in cells] == list(chosen)
    assert all(held[1] <= run.BUDGET for cell in cells for held in cell["held"])
    assert (tmp_path / "film_memories.png").stat().st_size > 1000
