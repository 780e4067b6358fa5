import json
import threading

import pytest

from liteframe.training.failures import FailureTally, TooManyBadVideosError


def record(tally, good, failures):
    tally.record(good, failures)
    tally.agree()


def failure(name, kind="truncated"):
    return {"path": name, "kind": kind, "reason": "ends early", "remedy": "copy it again"}


def test_counts_and_lists_each_video_once(tmp_path):
    tally = FailureTally(tmp_path / "run" / "bad.jsonl", 0.5)
    record(tally, 4, [failure("a.mp4")])
    record(tally, 4, [failure("a.mp4"), failure("b.mp4", "empty")])
    assert tally.summary() == {"clips_read": 8, "clips_failed": 3, "kinds": {"truncated": 2, "empty": 1}}
    assert tally.rate == 3 / 11
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["a.mp4", "b.mp4"]


def test_error_names_file_reason_and_remedy(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.05, remedy="Run liteframe scan")
    record(tally, 2, [failure("a.mp4")])
    record(tally, 2, [failure("b.mp4")])
    with pytest.raises(TooManyBadVideosError) as error:
        record(tally, 2, [failure("c.mp4")])
    for words in ("3 of 9", "a.mp4: truncated: ends early (copy it again)", "c.mp4", str(tmp_path), "liteframe scan"):
        assert words in str(error.value)


def test_bound_is_a_rate_with_a_minimum(tmp_path):
    few = FailureTally(tmp_path / "few.jsonl", 0.05)
    record(few, 0, [failure("a.mp4"), failure("b.mp4")])
    none = FailureTally(tmp_path / "none.jsonl", 0)
    record(none, 900, [failure("a.mp4"), failure("b.mp4")])
    with pytest.raises(TooManyBadVideosError):
        record(none, 0, [failure("c.mp4")])


def test_bound_is_not_for_an_unlucky_start(tmp_path):
    """Three of the first sixteen at a true rate of 5 % happen in one run of twenty; a rate of 10 % does not last."""
    unlucky = FailureTally(tmp_path / "unlucky.jsonl", 0.06)
    record(unlucky, 13, [failure(f"{n}.mp4") for n in range(3)])
    for _ in range(60):
        record(unlucky, 15, [failure("a.mp4")])
    doubled = FailureTally(tmp_path / "doubled.jsonl", 0.05)
    record(doubled, 182, 18 * [failure("a.mp4")])
    with pytest.raises(TooManyBadVideosError, match="22 of 204"):
        record(doubled, 0, 4 * [failure("a.mp4")])


def test_a_hundred_failures_in_a_row_stop_a_long_run(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.05)
    record(tally, 100_000, [])
    for _ in range(99):
        record(tally, 0, [failure("a.mp4")])
    with pytest.raises(TooManyBadVideosError):
        record(tally, 0, [failure("a.mp4")])


def test_resumed_tally_goes_on(tmp_path):
    tally = FailureTally(tmp_path / "bad.jsonl", 0.9)
    record(tally, 1, [failure("a.mp4")])
    again = FailureTally(tmp_path / "bad.jsonl", 0.9)
    again.load_state_dict(tally.state_dict())
    record(again, 1, [failure("a.mp4"), failure("b.mp4")])
    assert again.summary()["clips_failed"] == 3
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_bad_rate(tmp_path):
    with pytest.raises(ValueError, match=r"max_failure_rate is 1\.5"):
        FailureTally(tmp_path / "bad.jsonl", 1.5)


def test_ranks_count_together_and_stop_together(tmp_path):
    """Each rank alone is below the minimum of three; both together are above the bound, and both raise."""
    batches = [(1, [failure("a.mp4"), failure("shared.mp4")]), (1, [failure("shared.mp4"), failure("b.mp4", "empty")])]
    tallies = [FailureTally(tmp_path / "bad.jsonl", 0.1) for _ in batches]
    for tally, (good, failures) in zip(tallies, batches, strict=True):
        tally.record(good, failures)
    counts, meeting, errors = [], threading.Barrier(2, timeout=10), []

    def together(numbers):
        counts.append(list(numbers))
        meeting.wait()
        return [sum(column) for column in zip(*counts, strict=True)]

    def rank(tally):
        try:
            tally.agree(together)
        except TooManyBadVideosError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=rank, args=(tally,)) for tally in tallies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(errors) == 2
    assert all("4 of 6 clips" in text and "a.mp4" in text and "b.mp4: empty" in text for text in errors)
    assert [tally.summary()["kinds"] for tally in tallies] == 2 * [{"truncated": 3, "empty": 1}]
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == ["a.mp4", "shared.mp4", "b.mp4"]


def test_a_row_cut_off_by_a_full_disk_is_left_behind(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"path": "old.mp4", "kind": "empty"}\n{"path": "cut')
    tally = FailureTally(path, 0.9)
    record(tally, 0, [failure("old.mp4", "empty"), failure("new.mp4")])
    rows = path.read_text().splitlines()
    assert len(rows) == 3
    assert json.loads(rows[2])["path"] == "new.mp4"
