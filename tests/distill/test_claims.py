"""benchmarks/claims.py: its verdicts by hand, a tiny run that is killed and goes on, and the committed page."""

import json
from itertools import count

import pytest
from worlds import ROOT

from liteframe.models.student.config import LiteFrameConfig


@pytest.fixture
def claims(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import claims

    return claims


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import claims_report

    return claims_report


def student(name, seed, right, cosine=0.9):
    return {"cell": {"kind": "student", "name": name, "seed": seed}, "right": {"64": right}, "cosine": cosine}


def record_of(report, *pairs):
    """Two students, the answers of each to twenty questions about four videos, by seed."""
    rows = [student(name, seed, right[name]) for seed, right in enumerate(pairs) for name in ("student", "no mixer")]
    return report.Record(rows, ROOT)


def test_a_claim_holds_is_refuted_or_is_not_shown(report):
    judge = report.better("student", "no mixer")
    good, bad = "11110" * 4, "11000" * 4
    pair = {"student": good, "no mixer": bad}
    # Two of five questions more in each video: no spread between videos, so no error.
    found = judge(record_of(report, pair, pair, pair))
    assert found.figure.startswith("80.0 against 40.0 %: +40.0 ± 0.0 (by seed +40.0, +40.0, +40.0)")
    assert found.verdict == "holds"
    other_way = {"student": bad, "no mixer": good}
    assert judge(record_of(report, other_way, other_way, other_way)).verdict == "**refuted**"
    # One video in four differs: mean 1/20, deviations of sums by video 3/4 and -1/4, so an error of 1/20.
    one = {"student": good, "no mixer": "11100" + good[5:]}
    found = judge(record_of(report, one, one, one))
    assert "+5.0 ± 5.0" in found.figure
    assert found.verdict == "not shown"
    assert judge(record_of(report, pair, pair)).verdict == "holds, 2 of 3 seeds"
    assert judge(report.Record([student("student", 0, good)], ROOT)) is None


def test_parts_of_a_claim(report):
    assert report.together(["holds", "holds"]) == "holds"
    assert report.together(["holds", "not shown"]) == "not shown"
    assert report.together(["not shown", "**refuted**"]) == "**refuted**"
    assert report.of_seeds([1.0, 2.0, 3.0], "x") == ("x: +2.0 ± 0.6 (by seed +1.0, +2.0, +3.0)", "holds")
    assert report.of_seeds([1.0, 2.0, 3.0], "x", backwards=True).verdict == "**refuted**"
    assert report.of_seeds([-1.0, 2.0, 0.0], "x", backwards=True).verdict == "holds"


def test_every_student_of_the_plan_is_one(claims):
    from toy_students import TOY

    for variant in claims.VARIANTS.values():
        config = LiteFrameConfig(**{**TOY["student"], **variant.student})
        assert config.clip_frames % config.compression[0] == 0
    assert {cell.seed for cell in claims.plan() if cell.kind == "student"} == {0, 1, 2}


def test_a_run_is_killed_and_goes_on(claims, tmp_path, monkeypatch):
    import claims_cells
    import claims_plan

    few = [claims.Cell("reduced"), claims.Cell("student", "rtd_linear"), claims.Cell("student", "clips of 4", 1)]
    monkeypatch.setattr(claims, "plan", lambda: few)
    monkeypatch.setattr(claims_cells, "DENSE_FRAMES", (64,))
    monkeypatch.setattr(
        claims_cells, "reducers", {name: claims_cells.reducers[name] for name in ("wap", "evs", "dycoke")}
    )
    monkeypatch.setattr(claims_cells, "SEEDS", (0,))
    setup = claims.Setup(scenes=1, steps=2, batch=2, statistics_clips=2, test_scenes=1)
    assert claims_plan.Setup().steps <= 650
    page = tmp_path / "claims.md"
    page.write_text("above\n<!-- claims -->\nold\n<!-- /claims -->\nbelow\n")
    calls, real = count(), claims.done

    def killed(shop, cell):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(shop, cell)

    monkeypatch.setattr(claims, "done", killed)
    arguments = (tmp_path / "work", tmp_path, page, setup)
    with pytest.raises(KeyboardInterrupt):
        claims.main(*arguments)
    assert len((tmp_path / "work/cells.jsonl").read_text().splitlines()) == 2
    claims.main(*arguments)
    assert next(calls) == 4  # what was done was not done again
    cells = json.loads((tmp_path / "claims.json").read_text())["cells"]
    assert [row["cell"]["name"] for row in cells] == ["", "rtd_linear", "clips of 4"]
    assert {name: len(right) for name, right in cells[0]["right"].items()} == dict.fromkeys(
        ("none@64", "wap@0.0625", "wap in a frame@0.0625", "evs@0.0625", "evs@0.25"), 5
    )
    assert "out of reach" in cells[0]["failed"]["dycoke@0.0625"] or cells[0]["failed"]["dycoke@0.0625"]
    assert all(-1 < row["cosine"] < 1 and set(row["right"]["64"]) <= set("01") for row in cells[1:])
    text = page.read_text()
    assert text.startswith("above\n<!-- claims -->\n")
    assert text.endswith("<!-- /claims -->\nbelow\n")
    assert "\nold\n" not in text
    with pytest.raises(ValueError, match="cells of another setup"):
        claims.main(tmp_path / "work", tmp_path, page, claims.Setup())


def test_the_committed_page_is_what_the_command_writes(claims):
    from claims_table import filled

    record = json.loads((ROOT / "benchmarks/claims.json").read_text())
    page = (ROOT / "docs/claims.md").read_text()
    assert filled(page, record) == page
    assert page.count("\n| paper |") >= 8
