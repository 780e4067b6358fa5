import json

import pytest

from liteframe.data.failures import FailureTally, TooManyBadVideosError


def failure(name, kind="truncated"):
    return {"path": name, "kind": kind, "reason": "ends early", "remedy": "copy it again"}


def test_counts_and_lists_each_video_once(tmp_path):
    tally = FailureTally(tmp_path / "run" / "bad.jsonl", 0.5)
    tally.record(4, [failure("a.mp4")])
    tally.record(4, [failure("a.mp4"), failure("b.mp4", "empty")])
    assert tally.summary() == {"clips_read": 8, "clips_failed": 3, "kinds": {"truncated": 2, "empty": 1}}
    assert tally.rate == 3 / 11
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["a.mp4", "b.mp4"]


def test_error_names_file_reason_and_remedy(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.05, remedy="Run liteframe scan")
    tally.record(10, [failure("a.mp4")])
    tally.record(10, [failure("b.mp4")])
    with pytest.raises(TooManyBadVideosError) as error:
        tally.record(10, [failure("c.mp4")])
    for words in ("3 of 33", "a.mp4: truncated: ends early (copy it again)", "c.mp4", str(tmp_path), "liteframe scan"):
        assert words in str(error.value)


def test_bound_is_a_rate_with_a_minimum(tmp_path):
    few = FailureTally(tmp_path / "few.jsonl", 0.05)
    few.record(0, [failure("a.mp4"), failure("b.mp4")])
    many = FailureTally(tmp_path / "many.jsonl", 0.05)
    many.record(950, [])
    many.record(0, [failure(f"{n}.mp4") for n in range(50)])
    with pytest.raises(TooManyBadVideosError):
        many.record(0, [failure("x.mp4")])


def test_a_hundred_failures_in_a_row_stop_a_long_run(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.05)
    tally.record(100_000, [])
    for _ in range(99):
        tally.record(0, [failure("a.mp4")])
    with pytest.raises(TooManyBadVideosError):
        tally.record(0, [failure("a.mp4")])


def test_resumed_tally_goes_on(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.9)
    tally.record(1, [failure("a.mp4")])
    again = FailureTally(tmp_path / "bad.jsonl", 0.9)
    again.load_state_dict(tally.state_dict())
    again.record(1, [failure("a.mp4"), failure("b.mp4")])
    assert again.summary()["clips_failed"] == 3
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_bad_rate(tmp_path):
    with pytest.raises(ValueError, match=r"max_failure_rate is 1\.5"):
        FailureTally(tmp_path / "bad.jsonl", 1.5)
