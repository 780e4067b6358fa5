"""Broken videos stop a run with a reason, or are counted; they never hang it and never teach it anything."""

import json

import pytest
import torch

from liteframe.distill.module import CTDModule


def broken(folder, count, good):
    """Files whose names are no UTF-8, as old disks and archives leave them."""
    folder.mkdir()
    (folder / "good\udcff.mp4").write_bytes(good.read_bytes())
    for number in range(count):
        path = folder / f"broken\udce9{number:02d}.mp4"
        path.write_bytes([b"", b"#EXTM3U\nfile:///etc/passwd\n", good.read_bytes()[:700]][number % 3])
    return folder


@pytest.fixture
def good(video_folder):
    return video_folder / "clip1.mp4"


@pytest.mark.parametrize("workers", [0, 2])
def test_one_good_and_ten_broken(fit, tmp_path, good, workers):
    videos = broken(tmp_path / "videos", 10, good)
    with pytest.raises(SystemExit) as stop:
        fit("--run", tmp_path / "run", "--data.videos", videos, "--data.workers", workers)
    message = str(stop.value.code)
    assert "clips could not be read" in message
    assert "max_failure_rate is 5%" in message
    assert "broken" in message
    assert "liteframe scan" in message
    rows = [json.loads(line) for line in (tmp_path / "run" / "bad_videos.jsonl").read_text().splitlines()]
    assert len(rows) >= 3
    assert all(row["path"].startswith(str(videos / "broken")) and row["reason"] and row["remedy"] for row in rows)


def test_tolerated_failures_are_counted_and_teach_nothing(fit, tmp_path, good, monkeypatch):
    """Batches of one clip, most of them lost: a step without a clip changes no weight and no moment."""
    videos = broken(tmp_path / "videos", 3, good)
    trace = []

    def state(self):
        moments = [value for entry in self.optimizers().state.values() for value in entry.values()]
        return [tensor.clone() for tensor in (*self.student.parameters(), *moments)]

    def start(self, batch, batch_idx):
        trace.append([bool(batch.paths), state(self), None])

    def end(self, outputs, batch, batch_idx):
        trace[-1][2] = state(self)

    monkeypatch.setattr(CTDModule, "on_train_batch_start", start)
    monkeypatch.setattr(CTDModule, "on_train_batch_end", end)
    fit("--run", tmp_path / "run", "--data.videos", videos, "--data.batch_size", 1, "--data.max_failure_rate", 1,
        "--data.val_fraction", 0, "--trainer.max_steps", 10)  # fmt: skip
    assert {read for read, _, _ in trace} == {True, False}
    for read, before, after in trace:
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same != read
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 10
    read = sum(read for read, _, _ in trace)
    # The statistics' four batches are the stream's first four.
    assert report["data"]["clips_failed"] == 10 - read + sum(not read for read, _, _ in trace[:4])
    assert set(report["data"]["kinds"]) <= {"empty", "playlist", "truncated", "corrupt", "not_video"}
    assert report["figures"]["data/failed_rate"] > 0.5
