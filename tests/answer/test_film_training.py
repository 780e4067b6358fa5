"""benchmarks/film_training.py: verdicts by hand, a record in parts, films with rows and labels, the committed pages."""

import importlib
import json

import numpy as np
import pytest
from worlds import ROOT

from liteframe.answer.memory import memories
from liteframe.answer.session import StreamSession
from liteframe.data.video.process import DecodeProcess
from liteframe.texts import read_jsonl
from liteframe.toyworld.films import film_for, questions_at


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def row(name, seed, **right):
    entries = dict.fromkeys(right, 16.0)
    return {
        "cell": {"kind": "film", "name": name, "seed": seed},
        "right": right,
        "entries": entries,
        "cpu_seconds": 1.0,
    }


# Two films with three questions about the past, of which one is a count, and one about the present.
QUESTIONS = [f"2 0 {film} {rest}" for film in (0, 1) for rest in ("EPM 1 8", "ASI 1 2", "REC 1 3", "ATR 0 8")]


def test_verdicts_by_hand(benchmark):
    report = benchmark("film_training_report")
    setup = {"base_steps": 1, "films": 1, "steps": 1, "batch": 1, "pair_steps": 1, "pair_batch": 1}
    cells = [row("base", 0, all="00000000")]
    cells += [row("chosen answers", seed, all="11101110") for seed in (0, 1)]
    cells += [row("TPO", seed, all="10111011") for seed in (0, 1, 2)]
    cells += [row("labels alone", 0, scenes="11110" * 4), row("distillation", 0, scenes="11000" * 4)]
    facts = {"date": "2026-12-01", "processor": "some", "versions": {"torch": "2"}, "setup": setup}
    page = report.table({**facts, "questions": QUESTIONS, "cells": cells})
    lines = {line.split(" | ")[1]: line for line in report.claim_rows({"questions": QUESTIONS, "cells": cells})}
    # Of the past without counts TPO has half, the chosen answers all, the base nothing. Films do not differ: no error.
    against = lines["TPO is better than fine-tuning on the chosen answers"]
    assert "past: 50.0 against 100.0 %: -50.0 (-50.0 to -50.0); by seed -50.0, -50.0 |" in against
    assert against.endswith("| **refuted**, 2 of 3 seeds |")
    gained = lines["TPO gains on the model that its pairs are of"]
    assert "+50.0 (+50.0 to +50.0); by seed +50.0, +50.0, +50.0 | holds |" in gained
    assert lines["a soft target from dense frames helps LMA"].endswith("one seed | **refuted**, 1 of 3 seeds |")
    told = next(line for line in page.splitlines() if line.startswith("| TPO | all |"))
    assert told.startswith("| TPO | all | 3 | 16 | 50.0 (")
    assert " | 100.0 (" in told
    assert "| by chance | | | | 31 | 12 | 33 |" in page
    text = f"a\n{report.MARKERS[0]}old\n{report.MARKERS[1]}b\n"
    assert against in report.filled(text, {"questions": QUESTIONS, "cells": cells})


def test_a_record_keeps_the_arms_of_other_processes(benchmark, tmp_path):
    run = benchmark("film_training")
    found = {"setup": {"films": 1}, "questions": QUESTIONS}
    old = [row("TPO", 0, all="0"), row("TPO", 1, all="0"), row("no arm", 0, all="0")]
    (tmp_path / "record.json").write_text(json.dumps({**found, "cells": old}))
    new = [row("TPO", 1, all="1"), row("chosen answers", 0, all="1")]
    merged = run.merged(new, tmp_path / "record.json", found)
    assert merged == [new[1], old[0], new[0]]  # in the order of the plan
    assert run.merged(new, tmp_path / "record.json", {**found, "setup": {"films": 2}}) == new[::-1]


def test_films_and_their_rows(benchmark, tmp_path):
    rows, plan = benchmark("film_training_rows"), benchmark("film_training_plan")
    rows.write_films(tmp_path, plan.Setup(films=1, turns=2, pair_films=1))
    read = {
        name: [row for _, row in read_jsonl(tmp_path / f"{name}.jsonl")] for name in ("films", "apart", "questions")
    }
    (learned,) = read["films"]
    assert [turn["value"].startswith("<video>") for turn in learned["conversations"]] == [True, False, False, False]
    alone = [row["conversations"][-1]["value"] for row in read["apart"]]
    assert alone == [turn["value"] for turn in learned["conversations"][1::2]]
    assert {row["video"] for row in read["questions"]} == {"videos/0001.mp4"}
    with DecodeProcess(60) as decoder:
        frames = decoder.probe(str(tmp_path / learned["video"])).timeline.frames
    assert frames % 8 == 0  # it ends with the second at which it is asked
    assert 8 * 8 < frames <= 2 * 8 * 8
    film = film_for(0, 0, 3)
    spans = {q.task: rows.span_of(film, q).get("span") for q in questions_at(film, 23, np.random.default_rng(0))}
    assert spans["ATR"] == [16, 23]  # the scene that runs
    assert spans["ASI"] is None  # about all that was seen
    assert spans["EPM"] in ([0, 8], [8, 16])


def test_training_and_sessions_label_slots_alike(benchmark, loaded):
    cells = benchmark("film_training_cells")
    model, processor = loaded["liteframe_internvl"]
    session = StreamSession(model, processor, memories["all"](), fps=8, labels="seconds")
    session.add(np.zeros((32, 64, 64, 3), np.uint8))
    shown = session._shown("?")
    with cells.labels_in_seconds():
        trained = processor.video_text(shown.slots)
    assert trained == session._lines.text(shown)
    assert trained != processor.video_text(shown.slots)


def test_the_committed_pages_come_from_the_committed_record(benchmark):
    report, facts = benchmark("film_training_report"), json.loads((ROOT / "benchmarks/film_training.json").read_text())
    assert (ROOT / "benchmarks/film_training.md").read_text() == report.table(facts)
    page = (ROOT / "docs/claims.md").read_text()
    assert page == report.filled(page, facts)
