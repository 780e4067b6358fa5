"""Scaling consistency by a published definition's numbers, and an audit of answers made by hand."""

import json
import math

import pytest

from liteframe.compare.audit import agreement, audit, main, scaling_consistency


def test_agreement_by_hand():
    assert agreement((50, 52, 55, 53), (60, 63, 67, 64)) == pytest.approx(0.9969, abs=1e-4)
    assert agreement((1, 2, 3), (3, 2, 1)) == pytest.approx(1)
    assert math.isnan(agreement((1, 2, 3), (5, 5, 5)))
    with pytest.raises(ValueError, match="2 and 2 scores: the same variants are needed, 3 at least"):
        agreement((1, 2), (1, 2))


def test_sizes_are_compared_over_what_both_have():
    scores = {"0.5B": {"a": 1, "b": 2, "c": 1, "d": 9}, "4B": {"a": 2, "b": 4, "c": 2}, "7B": {"a": 1, "d": 1}}
    assert scaling_consistency(scores) == [{"sizes": ["0.5B", "4B"], "variants": 3, "r2": pytest.approx(1)}]


def answers(rights, choices="AAA"):
    pairs = enumerate(zip(rights, choices, strict=True))
    return {f"q{n}": {"right": right, "choice": choice} for n, (right, choice) in pairs}


def test_what_needs_no_video_is_dropped():
    models = {
        "one": {"text": answers((1, 0, 0)), "frame": answers((1, 0, 0)), "video": answers((1, 1, 0), "ABA")},
        "two": {"text": answers((0, 0, 1)), "frame": answers((0, 1, 0)), "video": answers((1, 1, 1), "ABC")},
        "three": {"text": answers((1, 0, 0)), "video": answers((1, 0, 1), "AAC")},
    }
    found = audit(models)
    assert found["accuracy"]["two"] == {"text": pytest.approx(1 / 3), "frame": pytest.approx(1 / 3), "video": 1.0}
    assert found["questions"]["q0"] == {"text": pytest.approx(2 / 3), "frame": 0.5, "video": 1.0, "entropy": 0.0}
    third = -(math.log2(1 / 3) / 3 + 2 * math.log2(2 / 3) / 3)
    assert found["questions"]["q2"]["entropy"] == pytest.approx(third)
    assert found["kept"] == ["q1", "q2"]
    models["three"]["video"].pop("q0")
    with pytest.raises(ValueError, match="asked the same questions"):
        audit(models)


def test_folders_of_comparisons(tmp_path, capsys):
    for name, right in (("small", (1, 0, 1)), ("large", (1, 1, 1))):
        points = [{"system": system, "frames": 8, "accuracy": sum(right) / 3 + n} for n, system in enumerate("abc")]
        for folder, rows in (
            ("blind-1", answers((0, 0, 1))),
            ("none-1", answers((0, 1, 0))),
            ("none-8", answers(right)),
        ):
            (tmp_path / name / "answers" / folder).mkdir(parents=True)
            lines = [json.dumps({"id": key, "reply": "A", **row}) + "\n" for key, row in rows.items()]
            (tmp_path / name / "answers" / folder / "answers.jsonl").write_text("".join(lines))
        (tmp_path / name / "compare.json").write_text(json.dumps({"points": [*points, {"system": "d", "frames": 8}]}))
    main([str(tmp_path / "small"), str(tmp_path / "large"), "-o", str(tmp_path / "audit.json")])
    said = capsys.readouterr().out
    assert f"{tmp_path}/small: text 33.3 %, frame 33.3 %, video 66.7 %" in said
    assert "1 of 3 questions need more than text or one frame" in said
    assert "R² 1.000 over 3 systems" in said
    assert json.loads((tmp_path / "audit.json").read_text())["kept"] == ["q0"]
