"""Subtitle files and the lines that frames fall on, by hand and against LongVideoBench's own code in lmms-eval."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liteframe.evaluate.benchmarks.subtitles import Line, read_subtitles, shown_lines, shown_lines_widened

SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:02,500\r\n<i>Hello</i>,\r\nyou &amp; me\r\n\r\n"
    "2\r\n0:01:00.5 --> 0:01:01.25\r\n{\\an8}Later\r\n\r\n3\r\n00:02:00,000 --> 00:02:01,000\r\n\r\n"
)


def test_srt(tmp_path):
    path = tmp_path / "a.srt"
    path.write_text(SRT, newline="")
    assert read_subtitles(path) == [Line(1.0, 2.5, "Hello, you & me"), Line(60.5, 61.25, "Later")]
    assert read_subtitles(path, shift=1.0)[0] == Line(0.0, 1.5, "Hello, you & me")
    path.write_text("")
    assert read_subtitles(path) == []


def test_json(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"timestamp": [10.5, 12.0], "text": "one"}, {"timestamp": [13.0, None], "text": "open"}]
    path.write_text(json.dumps([*rows, {"start": "00:01:02.500", "end": "00:01:03.000", "line": "two"}]))
    lines = read_subtitles(path, shift=10.0, duration=20.0)
    assert lines == [Line(0.5, 2.0, "one"), Line(3.0, 10.0, "open"), Line(52.5, 53.0, "two")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.srt", "no times here", r"a\.srt: no time line"),
        ("a.json", "[1,\n oops]", r"a\.json:2: not JSON"),
        ("a.json", "{}", "holds dict"),
        ("a.json", '[{"text": "x"}]', r"a\.json: record 1"),
        ("a.json", '[{"timestamp": [1], "text": "x"}]', r"a\.json: record 1"),
    ],
)
def test_broken_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_subtitles(tmp_path / name)


def test_lines_that_frames_fall_on():
    lines = [Line(0, 1, "a"), Line(1, 2, "b"), Line(5, 5.2, "c")]
    assert shown_lines(lines, [0.0, 0.5, 1.999]) == ["a", "b"]
    assert shown_lines(lines, [1.0, 5.3]) == ["b"]
    assert shown_lines_widened(lines, [1.0, 5.3]) == ["c"]  # 5.1 +- 0.5; 1.0 lies on borders only
    assert shown_lines_widened(lines, [0.2, 1.5]) == ["a", "b"]


times = st.integers(0, 80).map(lambda n: n / 8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(times, times).map(sorted), max_size=6), st.lists(times, max_size=6).map(sorted))
def test_widened_rule_is_the_authors(spans, frames):
    from lmms_eval.tasks.longvideobench.utils import insert_subtitles_into_frames

    subtitles = [{"timestamp": [float(a), float(b)], "text": f"line {n}"} for n, (a, b) in enumerate(spans)]
    theirs = insert_subtitles_into_frames(frames, subtitles, 0.0, 10.0).split("\n")
    ours = shown_lines_widened([Line(a, b, f"line {n}") for n, (a, b) in enumerate(spans)], frames)
    assert ours == [text for text in theirs if text.startswith("line")]
