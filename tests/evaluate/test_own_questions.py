"""Free-form answers: which words are the same, accuracy by hand, files with mistakes in them."""

import json
import math

import pytest

from liteframe.evaluate.benchmarks.base import Question, Result, by_group, share_of
from liteframe.evaluate.benchmarks.own_questions import FreeForm, normalize

BENCHMARK = FreeForm()


def result(reply, answer, kind="x", video="v.mp4"):
    return Result(Question("q", video, "?", answer, groups={"type": kind}), reply)


def test_the_same_words():
    assert normalize("  The Red\n circle. ") == "the red circle"
    for reply, right in (("Red.", True), ("dark red", False), ("", False)):
        assert BENCHMARK.reply_is_right(result(reply, "red").question, reply) is right


@pytest.mark.parametrize(
    ("answer", "same", "others"),
    [
        ("-3", ["-3", " -3. ", '"-3"', "(-3)", "**-3**"], ["3", "+3", "--3", "- 3"]),
        ("3", ["3", "3.", "- 3", "'3'"], ["-3", ".3", "3%", "$3"]),
        (".5", [".5", ".5.", "`.5`"], ["5", "-.5"]),
        ("50%", ["50%", "50%."], ["50"]),
        ("C#", ["c#", "C#!"], ["C", "C++"]),
        ("?", ["?", " ? "], ["", "what", "!"]),
        ("red", ["Red.", "“red”", "...red...", "¿red?"[1:]], ["", "?", "re d"]),
    ],
)
def test_signs_are_part_of_the_words_and_marks_around_them_are_not(answer, same, others):
    question = result("", answer).question
    assert [reply for reply in same if not BENCHMARK.reply_is_right(question, reply)] == []
    assert [reply for reply in others if BENCHMARK.reply_is_right(question, reply)] == []


def test_accuracy_whole_and_by_type():
    pairs = (("a", "a", "x"), ("B", "b", "x"), ("c", "c", "y"), ("z", "d", "y"), ("", "e", "y"))
    results = [result(*pair) for pair in pairs]
    whole = share_of(results, BENCHMARK.reply_is_right)
    assert (whole.accuracy, whole.count, whole.videos) == (pytest.approx(3 / 5), 5, 1)
    assert whole.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 5))
    parts = {kind: share_of(part, BENCHMARK.reply_is_right) for kind, part in by_group(results, "type").items()}
    assert (parts["x"].accuracy, parts["x"].standard_error, parts["x"].count) == (1.0, 0.0, 2)
    assert parts["y"].accuracy == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="at least one"):
        share_of([], BENCHMARK.reply_is_right)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"video": "a.mp4", "question": "q", "answer": "a"}\n{oops\n', r"q\.jsonl:2: not JSON"),
        ('{"video": "a.mp4", "question": "q"}\n', r"q\.jsonl:1: lacks 'answer'"),
        ('{"video": [3], "question": "q", "answer": "a"}\n', r"q\.jsonl:1: 'video' must be a text"),
        ("[1]\n", r"q\.jsonl:1: a list, not an object with named fields"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        BENCHMARK.load(tmp_path / "q.jsonl")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        BENCHMARK.load(tmp_path / "none.jsonl")


def test_videos_lie_beside_the_file(tmp_path):
    rows = [{"video": v, "question": "q", "answer": "a"} for v in ("a.mp4", "b.mp4")]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [q.video for q in BENCHMARK.load(tmp_path / "q.jsonl").questions] == [
        str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"),
    ]  # fmt: skip
