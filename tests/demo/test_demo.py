"""The demo from end to end at its smallest, and the shipped teacher's figures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from worlds.exports import reloading_in_forks

from liteframe.demo.demo import Journey, Settings, prepare_folder, run_demo
from liteframe.demo.report import AT, BENCHMARK, LMA, SYSTEMS, TEACHER, SystemResult, advantage, mean_results
from liteframe.demo.systems import FRAMES, answer_questions, name_of, score
from liteframe.evaluate.benchmarks.base import Question, Result
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld.model import CHECKPOINT
from liteframe.toyworld.questions import CHANCE, QUESTION_TYPES, write_toyworld

SMALLEST = Settings(train_videos=6, test_videos=2, views=1, ctd_steps=2, lma_steps=2, timing_runs=2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    with (folder.parent / "console.txt").open("w") as out, reloading_in_forks():
        report = run_demo(folder, SMALLEST, seed=7, console=Console(file=out, width=160))
    return folder, report, (folder.parent / "console.txt").read_text()


def test_every_system_is_scored_and_timed(demo):
    folder, report, _ = demo
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert [(r["system"], r["frames"]) for r in report["results"]] == [(s, f) for s in SYSTEMS for f in FRAMES[s]]
    for row in report["results"]:
        assert row["questions"] == 2 * len(QUESTION_TYPES)
        assert row["tokens_per_frame"] == (16 if row["system"] == TEACHER else 1)
        assert row["total_ms"] == row["encoder_ms"] + row["prefill_ms"] > 0
        assert set(row["types"]) == set(QUESTION_TYPES)


def test_the_teacher_sees_and_the_export_agrees(demo):
    _, report, _ = demo
    accuracy = {(r["system"], r["frames"]): r["types"] for r in report["results"]}
    for kind in ("shape", "direction", "order"):
        assert accuracy[TEACHER, 16][kind] == 1  # of two videos; its record says 95 % and more
    (export,) = report["export"]
    assert export["same answers"] == export["questions"] == 10
    assert export["largest logit difference"] <= 1e-4


def test_what_is_timed_on_the_cpu_was_trained_there(demo):
    folder, _, _ = demo
    for run in ("ctd", "lma"):
        assert yaml.safe_load((folder / run / "config.yaml").read_text())["trainer"]["accelerator"] == "cpu"


def test_the_student_learns_from_the_cache_by_muon(demo):
    folder, _, _ = demo
    report = json.loads((folder / "ctd" / "report.json").read_text())
    assert report["data"]["cache"]
    assert report["steps"] == 2
    settings = yaml.safe_load((folder / "ctd" / "config.yaml").read_text())
    assert settings["model"]["optimizer"]["kind"] == "muon"
    assert Path(settings["data"]["cache"]) == folder / "cache"


def test_it_ends_with_a_table_a_picture_and_answers(demo):
    folder, report, printed = demo
    assert (folder / "accuracy_against_time.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "results.md").read_text().splitlines()) == 2 + len(report["results"])
    assert "At 8x the frames" in printed
    assert "Ask about a video" in printed
    for system in SYSTEMS:
        assert system in printed


def results_of(*right):
    """Results of two questions a video; right answers are "red"."""
    questions = [Question(str(n), f"video{n // 2}", "?", "red") for n in range(len(right))]
    return [Result(question, "red" if good else "blue") for question, good in zip(questions, right, strict=True)]


def test_the_difference_is_of_the_same_questions_and_its_error_of_videos():
    student, teacher = results_of(1, 1, 1, 1, 0, 1), results_of(1, 0, 0, 0, 1, 1)
    alone = advantage([(student, teacher)])
    # By video: 1/2, 1, -1/2; mean 1/3, deviations 1/6, 2/3, -5/6.
    assert alone.difference == pytest.approx(1 / 3)
    assert alone.standard_error == pytest.approx(math.sqrt((1 + 16 + 25) / 36 / 2 / 3))
    both = advantage([(student, teacher), (teacher, teacher)])
    assert both.by_seed == pytest.approx((1 / 3, 0))
    assert both.difference == pytest.approx(1 / 6)


def test_a_table_of_several_seeds_is_their_mean():
    rows = [SystemResult(TEACHER, 8, 16, ms, 2.0, share, 0.03, 300, {"colour": share})
            for ms, share in ((10.0, 0.8), (14.0, 0.9))]  # fmt: skip
    (mean,) = mean_results([[row] for row in rows])
    assert (mean.total_ms, mean.questions) == (14.0, 600)
    assert (mean.accuracy, mean.types["colour"]) == pytest.approx((0.85, 0.85))
    assert mean.error == pytest.approx(0.03 / math.sqrt(2))
    assert mean_results([[rows[0]]]) == [rows[0]]


def test_several_seeds_go_the_road_one_after_the_other(tmp_path, monkeypatch):
    student, teacher = results_of(1, 1, 1, 1), results_of(1, 0, 1, 1)
    gone = []

    def travel(folder, settings, seed, watch, stage):
        gone.append((folder.name, seed, stage))
        types = dict.fromkeys(QUESTION_TYPES, 0.5)
        rows = [SystemResult(name, AT[name], 1, 5.0 + seed, 1.0, 0.5, 0.1, 4, types) for name in AT]
        return Journey(rows, {name_of(LMA, 64): student, name_of(TEACHER, 8): teacher}, {"questions": 4})

    monkeypatch.setattr("liteframe.demo.demo.travel", travel)
    with (tmp_path / "printed").open("w") as out:
        report = run_demo(tmp_path / "run", replace(SMALLEST, seeds=3), 5, Console(file=out, width=160))
    assert gone == [(f"seed_{seed}", seed, f" (seed {seed})") for seed in (5, 6, 7)]
    assert report["seeds"] == [5, 6, 7]
    assert [row["encoder_ms"] for row in report["results"]] == [11.0, 11.0]
    assert report["student_over_teacher"] == {
        "difference": 0.25, "standard_error": pytest.approx(0.25 / math.sqrt(5)), "by_seed": (0.25, 0.25, 0.25)
    }  # fmt: skip
    assert len(report["export"]) == len(report["by_seed"]) == 3
    assert "By seed: +25.0, +25.0, +25.0 points." in (tmp_path / "printed").read_text()


def test_an_earlier_demo_is_replaced_and_anything_else_refused(tmp_path):
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "demo.json").write_text("{}")
    (earlier / "old.txt").write_text("")
    prepare_folder(earlier)
    assert not list(earlier.iterdir())
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        prepare_folder(other)
    assert (other / "thesis.tex").exists()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """Sixty questions about twelve videos that nobody was trained on."""
    world = write_toyworld(tmp_path_factory.mktemp("held_out"), train=0, test=12, seed=11)
    return BENCHMARK.load(world.test_rows).questions


def check_record(model, processor, questions):
    """Whether a model is as often right as the pretraining command recorded, within the error of so few questions."""
    record = json.loads((CHECKPOINT / "pretraining.json").read_text())["held-out accuracy by frames and question type"]
    for frames, kinds in ((16, QUESTION_TYPES), (32, ("event",))):
        asked = [question for question in questions if question.groups["type"] in kinds]
        found = score(answer_questions(model, processor, asked, frames)).types
        for kind in kinds:
            count, p = found[kind].count, min(record[str(frames)][kind], 0.99)
            right = round(found[kind].accuracy * count)
            at_most = sum(math.comb(count, n) * p**n * (1 - p) ** (count - n) for n in range(right + 1))
            assert at_most > 0.001, f"{kind}, {frames} frames: {right} of {count} right, recorded {p}"


def test_shipped_teacher_answers_as_often_as_its_record_says(held_out):
    check_record(*load_video_llm(CHECKPOINT), held_out)


@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "language_model.layers.2"])
def test_a_damaged_teacher_does_not(held_out, part):
    model, processor = load_video_llm(CHECKPOINT)
    damaged = model.model.get_submodule(part)
    with torch.no_grad():
        for parameter in damaged.parameters():
            parameter.copy_(parameter.flatten().roll(1).reshape(parameter.shape))
    with pytest.raises(AssertionError, match="frames: "):
        check_record(model, processor, held_out[:30])


def test_the_record_of_the_shipped_teacher():
    """95 % where the frames suffice (three types), more with more frames."""
    record = json.loads((CHECKPOINT / "pretraining.json").read_text())
    table = record["held-out accuracy by frames and question type"]
    assert record["chance"] == pytest.approx(CHANCE)
    for kind in ("shape", "direction", "order"):
        assert table["16"][kind] >= 0.95
    events = [table[frames]["event"] for frames in ("4", "8", "16", "32")]
    assert events == sorted(events)
    assert events[-1] > events[0] + 0.4
    assert sum(path.stat().st_size for path in Path(CHECKPOINT).iterdir()) <= 8_000_000
