"""Seconds are those at which a player shows the frames, at every door; the truth is what FFmpeg's own command shows."""

import json
import logging
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from worlds.students import make_student
from worlds.videos import numbers, shown_at

from liteframe.align.conversation_files import load_conversations
from liteframe.align.dataset import ConversationDataset
from liteframe.answer.ask import VideoQuestion
from liteframe.answer.encode import encode_video
from liteframe.cli.main import main
from liteframe.data.manifest import VideoEntry, load_manifest, row_of_entry
from liteframe.data.preprocess import FrameFormat
from liteframe.data.video import reader_decord
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.reader import probe, read_frames
from liteframe.data.video.sampling import at_fps, choose_frames, dense_clip
from liteframe.data.video.scan import scan
from liteframe.data.video.timeline import Timeline, timeline_of
from liteframe.distill.clips import ClipDataset
from liteframe.evaluate.asking import Asking, question_text, read_video
from liteframe.evaluate.benchmarks.base import Question
from liteframe.evaluate.benchmarks.own_questions import FreeForm
from liteframe.models.vlm.internvl import LiteFrameInternVLProcessor
from liteframe.toyworld.model import build_processor, build_tokenizer

FORMAT = FrameFormat((64, 96), (0.5,) * 3, (0.5,) * 3, "squash")
UNEVEN = ["two_rates.mp4", "two_rates.mkv", "two_rates.ts", "lost.mp4", "lost.avi", "slides.mp4", "variable_rate.mp4"]


@pytest.mark.parametrize(
    "name", [*UNEVEN, "after_sound.mp4", "after_sound.mkv", "after_sound.ts", "edit_list.mp4", "h264.ts", "vp9.webm"]
)
def test_frames_are_shown_when_ffmpeg_shows_them(corpus, name):
    path = corpus.path(name)
    timeline, shown = probe(path).timeline, shown_at(path)
    assert len(shown) == timeline.frames
    # files that count in milliseconds round
    np.testing.assert_allclose([timeline.time(i) for i in range(timeline.frames)], shown, atol=0.0011)
    assert timeline.is_constant == (name not in UNEVEN)


def test_what_is_known_of_a_constant_rate_is_two_numbers(corpus):
    assert probe(corpus.path("h264.mp4")).breaks == ((0, 0.0), (48, 1.6))
    assert probe(corpus.path("mpeg4.avi")).breaks == ((0, 0.0), (48, 1.6))  # FFmpeg's start at 1/30: it reorders
    (_, start), (frames, end) = probe(corpus.path("after_sound.mp4")).breaks
    assert (start, frames, end) == (3.5, 48, pytest.approx(5.1))


class Doors:
    """The frames that each way into the program takes of the span of a file."""

    def __init__(self, processor, folder, start, end):
        self.processor, self.folder, self.start, self.end, self.read = processor, folder, start, end, []

    def ask(self, path):
        return list(VideoQuestion.prepare(path, "What?", frames=256, start=self.start, end=self.end).indices)

    def encode_video(self, path):
        self.read.clear()
        encode_video(make_student(), path, frames=256, size=64, start=self.start, end=self.end)
        return list(self.read)

    def eval(self, path):
        question = Question("1", str(path), "What?", "", start=self.start, end=self.end)
        bare = SimpleNamespace(resized=lambda frames: torch.as_tensor(frames).permute(0, 3, 1, 2))
        return read_video(bare, DecodeProcess(), question, Asking(256, None, "{subtitles}", True, 8, 60.0))

    def row(self, path, scanned, **more):
        file, row = self.folder / "rows.jsonl", {"video": str(path), "start": self.start, "end": self.end}
        file.write_text(json.dumps({**row, **(scanned or {}), **more}) + "\n")
        return file

    def lma(self, path, scanned=None):
        turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
        conversations = load_conversations(self.row(path, scanned, conversations=turns))
        data = ConversationDataset(conversations, self.processor, budgets=[256], fps=(30.0, 30.0))
        return list(data[0, 0].media[0].key[1])

    def ctd(self, path, scanned=None):
        clips = ClipDataset(load_manifest(self.row(path, scanned)), FORMAT, clip_frames=256, min_fps=30.0)
        return list(dict.fromkeys(clips.view((0, 0)).indices))


@pytest.fixture
def doors(monkeypatch, tmp_path):
    """Everything in this process, where starting it over and over takes no time; eval keeps frames as they are."""

    def open_doors(start, end):
        base = build_processor(build_tokenizer())
        processor = LiteFrameInternVLProcessor(
            base.tokenizer, base.video_processor, chat_template=base.chat_template, pixels_per_token=32
        )
        found = Doors(processor, tmp_path, start, end)

        def read(self, path, indices, reader="pyav", size=None, then=()):
            found.read.extend(indices)
            return read_frames(path, indices, reader=reader, size=size)

        monkeypatch.setattr(reader_decord, "available", lambda: False)
        monkeypatch.setattr(DecodeProcess, "read", read)
        monkeypatch.setattr(DecodeProcess, "probe", lambda self, path: probe(path))
        return found

    return open_doors


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("two_rates.mp4", 5.0, 12.0),
        ("two_rates.mkv", 3.5, 4.5),
        ("two_rates.ts", 15.0, None),
        ("after_sound.mp4", 4.0, 4.5),
        ("after_sound.mkv", 0.0, 4.0),
        ("lost.mp4", 0.5, 3.8),
        ("lost.avi", 1.0, 1.3),
        ("edit_list.mp4", 0.2, 0.5),
    ],
)
def test_every_door_looks_at_the_span_that_was_asked_for(corpus, doors, monkeypatch, name, start, end):
    path = corpus.path(name)
    stamps = shown_at(path)
    truth = [i for i, t in enumerate(stamps) if start <= t < (end or 1e9)]
    if name == "lost.mp4":
        assert (truth[:6], truth[-1]) == ([15, 16, 17, 18, 19, 20], 23)
    at = doors(start, end)
    assert at.ask(path) == at.encode_video(path) == at.ctd(path) == truth
    assert set(at.lma(path)) <= set(truth)
    seen = at.eval(path)
    assert numbers(seen.frames) == numbers(read_frames(path, truth))
    assert list(seen.times) == pytest.approx([stamps[i] for i in truth], abs=0.0011)
    # a row that was scanned says the same, and the file is not looked through again
    [result] = scan([VideoEntry(str(path), start, end)], samples=0)
    row = row_of_entry(result.entry)
    unscanned = at.lma(path), at.ctd(path)

    def refuse(self, path):
        raise AssertionError(f"{path} was looked through")

    monkeypatch.setattr(DecodeProcess, "probe", refuse)
    assert (at.lma(path, row), at.ctd(path, row)) == unscanned


@pytest.mark.parametrize("name", ["two_rates.mp4", "two_rates.mkv", "lost.mp4", "slides.mp4", "variable_rate.mp4"])
@pytest.mark.parametrize(("start", "end"), [(None, None), (1.0, 9.0)])
def test_evenly_is_evenly_in_time(corpus, name, start, end):
    """Each frame is the one on the screen in the middle of one of n equal parts of the span, found by a loop."""
    path = corpus.path(name)
    info, stamps = probe(path), shown_at(path)

    def on_screen(second):
        return max(i for i, stamp in enumerate(stamps) if stamp <= second + 0.001)

    first, last = start or 0.0, min(end or 1e9, info.timeline.end)
    inside = [stamp for stamp in stamps if first <= stamp < last]
    if not inside or inside[0] - first < 1:
        first = inside[0] if inside else first
    for n in (3, 8):
        if len(inside) > n:
            looks = [first + (k + 0.5) * (last - first) / n for k in range(n)]
            assert choose_frames(info.timeline, frames=n, start=start, end=end) == [on_screen(t) for t in looks]
    for fps in (0.4, 1.0, 2.0):
        looks = [first + (k + 0.5) / fps for k in range(int((last - first) * fps + 1e-6))] or [(first + last) / 2]
        expected = sorted({on_screen(t) for t in looks})
        assert at_fps(info.timeline, target_fps=fps, max_frames=99, start=start, end=end) == expected


def test_a_clip_of_training_is_equally_spaced_in_time(corpus):
    timeline = probe(corpus.path("two_rates.mp4")).timeline
    chosen = dense_clip(timeline, n=8, min_fps=1.0, u=0.0)
    assert chosen == [0, 30, 60, 90, 120, 122, 125, 127]  # 0, 1, 2, 3, 4, 4.8, 6, 6.8: what is shown at 0, 1, ... 7 s
    assert dense_clip(timeline, n=4, min_fps=0.5, u=1.0)[-1] == 159
    # faster than the frames come in its second part: what stays on the screen comes again, which the mask tells
    slow = dense_clip(timeline, n=8, min_fps=5.0, start=3.9, u=1.0)
    assert slow == sorted(slow)
    assert dense_clip(timeline, n=8, min_fps=5.0, start=5.0, u=0.0) == list(range(123, 131))  # 2.5 a second: each


def test_subtitles_are_those_of_the_times_that_are_seen(corpus, doors, tmp_path):
    path = corpus.path("two_rates.mp4")
    rows = [f"{k}\n00:00:{k:02d},000 --> 00:00:{k + 1:02d},000\nline {k}\n" for k in range(19)]
    (tmp_path / "a.srt").write_text("\n".join(rows))
    question = Question("1", str(path), "What?", "", subtitles=str(tmp_path / "a.srt"))
    how = Asking(256, None, "{subtitles}", True, 8, 60.0)
    text = question_text(FreeForm(), question, doors(5.0, 12.0).eval(path), how)
    assert text.split("\n") == [f"line {k}" for k in range(5, 12)]


def test_a_frame_that_stays_belongs_to_the_span(corpus):
    timeline = probe(corpus.path("slides.mp4")).timeline  # at 0, 10.02, 20.02, 30.04 s
    assert choose_frames(timeline, frames=9, start=5.0, end=12.0) == [0, 1]
    assert choose_frames(timeline, frames=9, start=12.0, end=14.0) == [1]
    assert choose_frames(timeline, frames=9, start=9.5, end=12.0) == [1]  # of the one before half a second, a fifth
    assert choose_frames(timeline, frames=9, start=9.5, end=10.2) == [0, 1]  # and here most of the span
    # and the last one stays for its own time
    assert choose_frames(Timeline.constant_rate(40, 8), frames=9, start=4.97) == [39]
    assert choose_frames(timeline, frames=9, start=timeline.end - 0.01) == [3]


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (None, float("inf"), "end is inf"),
        (None, float("nan"), "end is nan"),
        (float("nan"), None, "start is nan"),
        (float("inf"), None, "start is inf"),
        (-1.0, None, "start is -1.0"),
        (2.0, 2.0, "from 2.0 s to 2.0 s holds no frame"),
        (5.2, None, "beyond the end of the video"),
        (0.0, 3.0, "shown from 3.500 s to 5.100 s"),
    ],
)
def test_spans_that_hold_nothing_are_refused_by_name_and_value(start, end, message):
    for timeline in (Timeline.constant_rate(48, 30, 3.5), Timeline(48, 30.0, ((0, 3.5), (9, 3.7), (48, 5.1)))):
        with pytest.raises(ValueError, match=message):
            timeline.span(start, end)


@given(st.lists(st.floats(0.004, 3.0), min_size=1, max_size=80), st.floats(0, 5), st.sampled_from([1000, 15360, 90000]))
def test_a_timeline_keeps_the_time_stamps(gaps, start, unit):
    ticks = np.round((start + np.cumsum(gaps)) * unit)
    timeline, broken = timeline_of(ticks, Fraction(1, unit), header_rate=25.0, last=unit)
    assert broken is None
    seconds = ticks / unit
    np.testing.assert_allclose([timeline.time(i) for i in range(len(ticks))], seconds, atol=0.0021)
    assert np.all(np.diff([timeline.time(i) for i in range(len(ticks))]) > 0)
    again = VideoEntry("/a.mp4", frames=len(ticks), fps=timeline.fps, breaks=json.loads(json.dumps(timeline.breaks)))
    assert again.timeline == timeline


def test_broken_time_stamps_are_mended_or_not_believed():
    def timeline(*ticks, rate=25.0):
        return timeline_of(np.array(ticks, dtype=float), Fraction(1, 10), header_rate=rate)

    nan = float("nan")
    mended, reason = timeline(0, 1, 1, 3, nan, 5, 9, 8, 11)
    assert [mended.time(i) for i in range(9)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 1.0, 1.1])
    assert reason.startswith("3 of its 9 time stamps are missing or do not rise")
    for ticks in ((nan,) * 4, (5, 4, 3, 2), (0, 1, 2, 1), (nan, 1, 2, 3), (0, 1, 2, 10_000_000)):
        steady, reason = timeline(*ticks)
        assert steady == Timeline.constant_rate(4, 25.0)
        assert "are taken to be shown at 25 a second" in reason
    assert timeline(0, 0, rate=1e6)[0].fps == 30  # what no camera takes


def test_broken_time_stamps_are_told_of_each_file(corpus, tmp_path, caplog, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("same_stamps.mkv", "days.mkv", "steady.mp4"):
        (folder / name).symlink_to(corpus.path(name))
    with caplog.at_level(logging.WARNING), DecodeProcess() as decoder:
        info = decoder.probe(folder / "same_stamps.mkv")
        decoder.probe(folder / "steady.mp4")
    [record] = caplog.records
    assert "same_stamps.mkv: 6 of its 48 time stamps" in record.getMessage()
    assert [info.timeline.time(i) for i in range(48)] == pytest.approx([i / 30 for i in range(48)], abs=0.0021)
    assert main(["scan", str(folder), "-o", str(tmp_path / "good.jsonl"), "--samples", "0"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 usable with broken time stamps" in printed
    rows = {Path(row.video).name: row for row in load_manifest(tmp_path / "good.jsonl")}
    assert "its time stamps cannot be" in rows["days.mkv"].broken_stamps
    assert rows["days.mkv"].duration < 1
    assert rows["steady.mp4"].broken_stamps is None


@pytest.mark.parametrize(
    ("name", "track"),
    [("thumbnail_first.mp4", 1), ("thumbnail_first.mkv", 1), ("both_default.mp4", 1), ("cover_art.mp4", 0)],
)
def test_the_track_is_the_one_that_a_player_shows(corpus, name, track):
    path = corpus.path(name)
    info = probe(path)
    assert info.frames == 48
    assert numbers(read_frames(path, [0, 40])) == [0, 40]
    [result] = scan([VideoEntry(str(path))], samples=0)
    # decord chooses by rules of its own
    assert (result.entry.video_track, result.entry.reader) == (info.video_track, "pyav")
    if name != "cover_art.mp4":
        assert info.video_track == track


def test_a_track_that_is_marked_default_goes_before_a_longer_one(corpus):
    info = probe(corpus.path("thumbnail_marked.mp4"))
    assert (info.frames, info.video_track, info.height) == (1, 0, 64)
