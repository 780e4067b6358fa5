"""Scores against hand-made numbers, files of questions with mistakes in them."""

import json
import math

import pytest

from liteframe.evaluate.scoring import is_right, normalize, score
from liteframe.evaluate.videoqa import by_video, load_questions


def test_normalize():
    assert normalize("  The Red\n circle. ") == "the red circle"
    assert is_right("Red.", "red")
    assert not is_right("dark red", "red")
    assert not is_right("", "red")


def test_score_whole_and_by_type():
    rows = [{"answer": a, "type": t} for a, t in (("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "y"))]
    result = score(rows, ["a", "B", "c", "z", ""])
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["error"] == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    assert result["types"]["x"] == {"accuracy": 1.0, "error": 0.0, "count": 2}
    assert result["types"]["y"]["accuracy"] == pytest.approx(1 / 3)


def test_score_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="1 answers for 2 questions"):
        score([{"answer": "a"}, {"answer": "b"}], ["a"])
    with pytest.raises(ValueError, match="no questions"):
        score([], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no questions"),
        ('{"video": "a.mp4", "question": "q", "answer": "a"}\n{oops\n', r"q\.jsonl:2: not JSON"),
        ('{"video": "a.mp4", "question": "q"}\n', r"q\.jsonl:1: lacks the text field\(s\) answer"),
        ('{"video": 3, "question": "q", "answer": "a"}\n', r"q\.jsonl:1: lacks the text field\(s\) video"),
        ("[1]\n", r"q\.jsonl:1: lacks the text field\(s\) video, question, answer"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_questions(tmp_path / "q.jsonl")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_questions(tmp_path / "none.jsonl")


def test_rows_of_one_video_stay_together(tmp_path):
    rows = [{"video": v, "question": "q", "answer": "a"} for v in ("a.mp4", "b.mp4", "a.mp4")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    groups = by_video(load_questions(tmp_path / "q.jsonl"))
    assert [(g.video, g.rows) for g in groups] == [(tmp_path / "a.mp4", (0, 2)), (tmp_path / "b.mp4", (1,))]
