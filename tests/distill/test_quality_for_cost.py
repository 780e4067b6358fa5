"""benchmarks/quality_for_cost.py: its plan and its arithmetic by hand, a tiny run of it, and the committed files."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from worlds import ROOT

SEEDS = (0, 1, 2)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality_for_cost

    return quality_for_cost


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import quality_for_cost_report

    return quality_for_cost_report


def test_all_runs_take_the_rate_that_was_best_on_the_first_seed(bench):
    setup = bench.Setup()
    quality = {("muon", 6e-3): 0.8, ("muon", 12e-3): 0.9, ("muon", 24e-3): 0.7,
               ("adamw", 2e-3): 0.5, ("adamw", 4e-3): 0.6, ("adamw", 8e-3): 0.65}  # fmt: skip
    done = []

    def finished(run):
        return {"curve": [{"cosine": 0.99}, {"cosine": quality[run.kind, run.rate]}]} if run in done else None

    for group, run in bench.plan(setup, finished):
        if group == "rates":
            assert run.seed == SEEDS[0]
        else:
            assert run.rate == {"muon": 12e-3, "adamw": 8e-3}[run.kind], group
        done.append(run)
    assert {kind for kind, rate in quality} == {kind for kind, _ in setup.rates}
    assert len({len(rates) for _, rates in setup.rates}) == 1  # the same number of tries
    assert set(quality) <= {(run.kind, run.rate) for run in done}
    plain = [run for run in done if run.kind == "muon" and run == replace(done[1], seed=run.seed)]
    assert {run.seed for run in plain} == set(SEEDS)
    assert {group for group, _ in bench.plan(setup, finished)} == set(bench.GROUPS)


def test_without_the_tries_there_is_no_choice(bench):
    assert {group for group, _ in bench.plan(bench.Setup(), lambda run: None)} == {"rates"}


TINY = {"videos": 3, "held_out": 1, "steps": 4, "every": 2, "batch": 2, "views": 2, "fewer_views": (1,),
        "rates": (("muon", (6e-3,)), ("adamw", (2e-3,))), "seeds": (0,), "statistics_clips": 2}  # fmt: skip


def test_a_tiny_run_is_measured_kept_and_not_done_again(bench, tmp_path, capsys, monkeypatch):
    setup, work, threads = bench.Setup(**TINY), tmp_path / "work", torch.get_num_threads()
    bench.main(work, tmp_path, setup, only="rates")
    record = json.loads((tmp_path / "quality_for_cost.json").read_text())
    assert [row["run"]["kind"] for row in record["runs"]] == ["muon", "adamw"]
    assert record["caches"][0]["cpu_seconds"] > 0
    for row in record["runs"]:
        assert [point["step"] for point in row["curve"]] == [2, 4]
        assert 0 < row["curve"][0]["cpu"] < row["curve"][1]["cpu"]
        assert all(-1 < point["cosine"] < 1 for point in row["curve"])
    assert record["runs"][0]["curve"][1]["cosine"] != record["runs"][1]["curve"][1]["cosine"]
    assert (tmp_path / "quality_for_cost.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "quality_for_cost.md").read_text().count(
        "\n| AdamW 0.002, 2 views, batch 2, 4 steps | 0 | A |"
    ) == 1

    # Another folder begins with the runs of the record, and one of another setup does not.
    taken = bench.Bench(tmp_path / "elsewhere", setup, 0.0, tmp_path / "quality_for_cost.json")
    assert taken.record()["runs"] == record["runs"]
    assert taken.record()["caches"] == record["caches"]
    assert not taken.caches
    taken.journal.close()
    with pytest.raises(ValueError, match="another setup"):
        bench.Bench(tmp_path / "third", replace(setup, steps=8), 0.0, tmp_path / "quality_for_cost.json")

    before = (work / "runs.jsonl").read_bytes()
    bench.main(work, tmp_path, setup, only="rates")
    bench.main(work, tmp_path, setup, minutes=0)
    assert (work / "runs.jsonl").read_bytes() == before
    assert "are left" in capsys.readouterr().err

    # The other sources: half of the steps on short clips, and fewer views, live.
    one = bench.Bench(work, setup, float("inf"))
    muon = bench.Run("muon", 6e-3, 4, 2, 2, 0)
    one.train(replace(muon, first="short clips"))
    assert [point["step"] for point in one.runs[-1]["curve"]] == [4]  # whole clips were validated after the second half
    folder = one.cache(1, None)
    assert bench.TargetCache.open(folder).settings.views == 1
    one.train(replace(muon, views=0))
    assert one.finished(replace(muon, views=0))["curve"][-1]["step"] == 4
    other, whole = replace(muon, seed=1), bench.Curve.on_train_batch_end
    with monkeypatch.context() as patch:  # stopped in its last step, and not begun anew
        patch.setattr(
            bench.Curve, "on_train_batch_end", lambda self, run, *_: whole(self) if run.global_step > 2 else 0
        )
        one.deadline = 0.0
        with pytest.raises(bench.TimeUpError):
            one.train(other)
    assert one.finished(other) is None
    one.deadline = float("inf")
    one.train(other)
    stopped = one.finished(other)["curve"]
    assert [point["step"] for point in stopped] == [2, 4]
    one.train(replace(muon, seed=0))  # another begins anew
    one.train(other)
    assert [point["cosine"] for point in one.runs[-1]["curve"]] == [point["cosine"] for point in stopped]
    one.journal.close()
    with pytest.raises(ValueError, match="another setup"):
        bench.Bench(work, replace(setup, steps=8), 0.0)
    torch.set_num_threads(threads)


def curve(*cosines, cpu=0.5):
    return [{"step": 50 * n, "cpu": cpu * 50 * n, "cosine": cosine} for n, cosine in enumerate(cosines, 1)]


def test_steps_to_a_cosine_are_between_two_validations(report):
    assert report.steps_to(curve(0.5, 0.7, 0.9), 0.8) == pytest.approx(125)
    assert report.steps_to(curve(0.5, 0.7, 0.9), 0.8, "cpu") == pytest.approx(62.5)
    assert report.steps_to(curve(0.5, 0.7, 0.6, 0.9), 0.7) == 100
    assert report.steps_to(curve(0.5), 0.4) == 50
    assert report.steps_to(curve(0.5, 0.7), 0.8) is None
    assert report.spread([0.5, 0.7, 0.9], 2) == "0.70 ± 0.20"
    assert report.spread([0.5, None], 2) == "1 of 2 runs"


def test_what_follows_for_the_paper_is_its_cached_hours_times_the_part_of_the_steps(bench, report, monkeypatch):
    monkeypatch.setattr(report, "COSINES", (0.7, 0.8, 0.97))
    setup = bench.Setup(steps=100)
    base = bench.Run("muon", 12e-3, 100, setup.views, setup.batch, 0)
    adamw = replace(base, kind="adamw")
    curves = [
        (base, "a", curve(0.7, 0.9, cpu=0.6)),
        (replace(base, steps=150), "b", curve(0.5, 0.6, 0.95, cpu=0.4)),
        (replace(adamw, steps=200), "a", curve(0.3, 0.5, 0.7, 0.8)),  # 200 and 100 s to 0.8; Muon 75, and 45 s
        (adamw, "a", curve(0.4, 0.7)),  # 100 and 50 s to 0.7; Muon 50, and 30 s
        (replace(adamw, steps=400), "b", curve(0.1, 0.98)),
        (replace(base, views=1), "a", curve(0.85, 0.999)),  # another source
        (replace(adamw, steps=50), "a", curve(0.99)),  # too short
        (replace(base, rate=1e-3), "a", curve(0.99)),  # a try
    ]
    runs = [
        {"run": asdict(replace(run, seed=seed)), "processor": processor, "curve": points}
        for run, processor, points in curves
        for seed in SEEDS
    ]
    record = {"setup": asdict(setup), "runs": runs}
    recipe = {"live_gpu_hours": 4000, "cached_gpu_hours": {"8": 1010}, "build_gpu_hours": {"8": 10}}
    rows = report.page(record, recipe).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    # On its way to 0.98, the long run of AdamW passes 0.7 after 84.1 steps.
    assert cells[0] == ["0.7", "84 steps (3 seeds)", "50 steps (3 seeds)", "0.59", "0.60", "605 GPU-hours", "15.1%"]
    assert cells[1] == ["0.8", "90 steps (3 seeds)", "75 steps (3 seeds)", "0.84", "0.45", "845 GPU-hours", "21.1%"]
    assert cells[2] == ["0.97", "99 steps (3 seeds)", "not reached", "", "", "", ""]
    runs[0]["curve"] = curve(0.6, 0.6)  # one seed is not there
    assert "| 0.7 | 84 steps (3 seeds) | 114 steps (3 seeds) |" in report.page(record, recipe)


def test_the_committed_files_come_from_the_committed_record(report):
    record, cost = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text()) for name in ("quality_for_cost", "recipe_cost")
    )
    assert (ROOT / "benchmarks" / "quality_for_cost.md").read_text() == report.as_markdown(record)
    page = (ROOT / "docs" / "cost.md").read_text()
    assert page.split(report.MARKERS[0])[1].split(report.MARKERS[1])[0] == report.page(record, cost["recipe"])
