import base64
import html
import io
import json
import os
import re
import signal
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image
from worlds import benchmarks as samples
from worlds.videos import BAD, GOOD

from liteframe.cli.main import main
from liteframe.data.manifest import VideoEntry, load_manifest
from liteframe.data.video import reader_decord
from liteframe.data.video.scan import ScanJournal, scan
from liteframe.journal import Journal

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
    assert main(["scan", str(videos), "-o", str(good), "--workers", "2", "--deadline", "60",
                 "--html", str(tmp_path / "page.html")]) == 0  # fmt: skip
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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.bad.jsonl", "good.jsonl", "page.html", "videos"]
    [entry] = load_manifest(good)
    assert entry == VideoEntry(**row)

    page = (tmp_path / "page.html").read_text()
    for name in names:
        assert html.escape(bad[name]["reason"], quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall('base64,([^"]*)', page)]
    with av.open(str(videos / "h264.mp4")) as file:
        frames = [frame.to_image() for frame in file.decode(video=0)]
    for picture, index in zip(pictures, (8, 24, 40), strict=True):
        assert picture.size == (144, 96)
        difference = np.subtract(picture, frames[index].resize(picture.size), dtype=float)
        assert np.abs(difference).mean() < 6  # JPEG


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
    assert "beyond the end of the video (1.600 s)" in outside.error.reason


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


@pytest.fixture
def eight(corpus, tmp_path):
    """Two videos, one of them with a name that is not UTF-8, and six files that are none."""
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b\udcff.mp4"):
        (tmp_path / "videos" / name).symlink_to(corpus.path("h264.mp4"))
    for number in range(6):
        (tmp_path / "videos" / f"{number}.mp4").touch()
    return tmp_path / "videos"


@pytest.fixture
def whole(eight, tmp_path, capsys):
    """Both lists of a scan that nobody stopped."""
    assert main(["scan", str(eight), "-o", str(tmp_path / "whole.jsonl"), "--workers", "1", "--samples", "1"]) == 0
    assert "wrote" in capsys.readouterr().out
    lists = [(tmp_path / name).read_bytes() for name in ("whole.jsonl", "whole.bad.jsonl")]
    assert [len(text.splitlines()) for text in lists] == [2, 6]
    return lists


def test_a_scan_that_was_stopped_goes_on(eight, whole, tmp_path, monkeypatch, capsys):
    good, keep, looked = tmp_path / "good.jsonl", ScanJournal.keep, []
    command = ["scan", str(eight), "-o", str(good), "--workers", "1", "--samples", "1"]

    def stopped_at_five(self, result):
        keep(self, result)
        looked.append(result.entry.video)
        if len(looked) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(ScanJournal, "keep", stopped_at_five)
    assert main(command) == 130
    assert "what is known so far is in" in capsys.readouterr().err
    assert not good.exists()
    part = tmp_path / "good.part.jsonl"
    with part.open("ab") as file:
        file.write(b'{"entry": {"vid')  # a line that the kill cut off
    assert main([*command, "--deadline", "9"]) == 2
    assert "give the same options to go on, or remove the file" in capsys.readouterr().err
    with Journal(part), pytest.raises(ValueError, match="another process writes to"):
        ScanJournal(part, {})
    (eight / "0.mp4").write_bytes(b"text")  # changed meanwhile: looked at again
    assert main(command) == 0
    assert "going on: 4 of 8 videos" in capsys.readouterr().out
    assert len(looked) == len(set(looked)) + 1 == 9
    assert looked.count(str(eight / "0.mp4")) == 2
    assert good.read_bytes() == whole[0]
    assert (tmp_path / "good.bad.jsonl").read_bytes().splitlines()[1:] == whole[1].splitlines()[1:]
    assert not part.exists()


def test_parts_are_joined_to_the_whole_list_and_what_is_missing_is_named(eight, whole, tmp_path, capsys):
    lists = [tmp_path / f"good.{number}-of-3.jsonl" for number in (1, 2, 3)]
    for number in (1, 2, 3):
        options = ["--workers", "1", "--samples", "1", "--shard", f"{number}/3"]
        assert main(["scan", str(eight), "-o", str(tmp_path / "good.jsonl"), *options]) == 0
    joined, merge = tmp_path / "all" / "all.jsonl", ["manifest", "merge", "-o", str(tmp_path / "all" / "all.jsonl")]
    assert main([*merge, *map(str, lists)]) == 0
    assert [joined.read_bytes(), joined.with_name("all.bad.jsonl").read_bytes()] == whole
    capsys.readouterr()
    # a part that is not there, and a video that no list has
    (eight / "new.mp4").touch()
    assert main([*merge, *map(str, lists[:2]), "--of", str(eight)]) == 1
    printed = capsys.readouterr().err
    assert f"missing: {lists[2]} (is there, but not given)" in printed
    assert f"missing: {eight / 'new.mp4'}" in printed
    # twice the same, usable after all, and two truths
    good = [row["video"] for row in rows(tmp_path / "whole.jsonl")]
    mended = samples.write_rows(tmp_path / "mended.jsonl", [{"video": str(eight / "5.mp4"), "frames": 3}])
    assert main([*merge, str(tmp_path / "whole.jsonl"), *map(str, lists), str(mended)]) == 0
    assert "2 usable ones stand twice" in capsys.readouterr().out
    assert [row["video"] for row in rows(joined)] == [str(eight / "5.mp4"), *good]
    assert len(rows(joined.with_name("all.bad.jsonl"))) == 5
    other = samples.write_rows(tmp_path / "other.jsonl", [{"video": str(eight / "5.mp4"), "frames": 4}])
    assert main([*merge, str(mended), str(other)]) == 2
    assert "other facts" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "-1/3"])
def test_shards_that_are_none(eight, tmp_path, capsys, shard):
    assert main(["scan", str(eight), "-o", str(tmp_path / "g.jsonl"), f"--shard={shard}"]) == 2
    assert "I/N with I from 1 to N" in capsys.readouterr().err


def test_what_is_not_looked_at_is_said(eight, tmp_path, capsys, monkeypatch):
    (eight / "notes.txt").touch()
    (eight / "loop").symlink_to(eight)
    scandir = os.scandir

    def locked(path):  # root may enter any folder
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (eight / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", locked)
    assert main(["scan", str(eight), "-o", str(tmp_path / "g.jsonl"), "--workers", "1", "--samples", "0"]) == 0
    printed = capsys.readouterr().out
    assert "1 other files are not looked at (1 .txt)" in printed
    assert f"not followed: {eight / 'loop'}" in printed
    assert [row["video"] for row in rows(tmp_path / "g.bad.jsonl") if row["kind"] == "unreadable"] == [
        str(eight / "locked")
    ]
