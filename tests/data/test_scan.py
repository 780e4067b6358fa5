import json
import os
import signal
import threading
import time

import pytest
from worlds.videos import BAD, GOOD

from liteframe.cli.main import main
from liteframe.data.manifest import VideoEntry, load_manifest
from liteframe.data.video import reader_decord
from liteframe.data.video.scan import scan

# decord gives wrong frames of these, or none at all (measured)
DECORD_LIES = ["open_group.mp4", "edit_list.mp4", "intra_refresh.mp4", "one_group.ts", "av1.mp4", "hevc_open_group.mp4"]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(corpus, tmp_path):
    """One good video and ten broken ones, each in its own way."""
    names = ["audio_only.mp4", "no_index.mp4", "cut_off.mkv", "zero_bytes.mp4", "playlist.mp4", "concat.mp4"]
    names += ["random.mp4", "image.mp4", "zeroed.mp4", "flash.mp4"]
    (tmp_path / "videos").mkdir()
    for name in ["h264.mp4", *names]:
        (tmp_path / "videos" / name).symlink_to(corpus.path(name))
    return tmp_path / "videos", names


def test_names_all_ten_broken_videos(folder, tmp_path, capsys):
    videos, names = folder
    good = tmp_path / "good.jsonl"
    assert main(["scan", str(videos), "-o", str(good), "--workers", "2", "--deadline", "60"]) == 0
    printed = capsys.readouterr().out
    [row] = rows(good)
    assert row["video"] == str(videos / "h264.mp4")
    assert (row["frames"], row["fps"], row["duration"], row["width"], row["height"]) == (48, 30.0, 1.6, 192, 128)
    assert row["reader"] in ("pyav", "decord")
    bad = {os.path.basename(row["video"]): row for row in rows(tmp_path / "good.bad.jsonl")}
    assert sorted(bad) == sorted(names)
    for name in names:
        assert bad[name]["kind"] == BAD[name][1]
        assert bad[name]["reason"]
        assert bad[name]["remedy"]
        assert name in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.bad.jsonl", "good.jsonl", "videos"]
    [entry] = load_manifest(good)
    assert entry == VideoEntry(**row)


def test_exit_codes(corpus, tmp_path, capsys):
    lone = tmp_path / "videos"
    lone.mkdir()
    out = str(tmp_path / "good.jsonl")
    assert main(["scan", str(lone), "-o", out]) == 2
    assert "no video below this folder" in capsys.readouterr().err
    (lone / "zero.mp4").touch()
    assert main(["scan", str(lone), "-o", out, "--deadline", "60"]) == 1
    assert "none of 1 videos can be used" in capsys.readouterr().err
    assert main(["scan", str(tmp_path / "nowhere"), "-o", out]) == 2


def test_every_good_video_is_found_good_and_decord_is_believed_only_where_exact(corpus):
    names = [name for name in GOOD if name != "4k.mp4"]
    results = scan([VideoEntry(str(corpus.path(name))) for name in names], deadline=60, samples=2)
    readers = {}
    for name, result in zip(names, results, strict=True):
        assert result.error is None, (name, result.error)
        assert result.entry.frames == GOOD[name].frames
        readers[name] = result.entry.reader
    assert {readers[name] for name in DECORD_LIES} == {"pyav"}
    if reader_decord.available():
        assert readers["h264.mp4"] == "decord"


def test_rows_keep_their_span_and_a_span_beyond_the_end_is_bad(corpus, tmp_path):
    path = str(corpus.path("h264.mp4"))
    inside, outside = scan([VideoEntry(path, start=0.5, end=1.0), VideoEntry(path, start=2.0)], samples=1)
    assert (inside.error, inside.entry.start, inside.entry.end) == (None, 0.5, 1.0)
    assert outside.error.kind == "index"
    assert "beyond its end (1.600 s)" in outside.error.reason


def test_a_file_that_hangs_is_reported_at_the_deadline(corpus, monkeypatch):
    from liteframe.data.video.process import DecodeProcess

    start = DecodeProcess._running

    def stopped(self):
        child = start(self)
        threading.Timer(0.05, os.kill, (child.pid, signal.SIGSTOP)).start()
        return child

    monkeypatch.setattr(DecodeProcess, "_running", stopped)
    begin = time.monotonic()
    [result] = scan([VideoEntry(str(corpus.path("h264.mp4")))], deadline=1.0, workers=1)
    assert result.error.kind == "deadline"
    assert time.monotonic() - begin < 10
