import dataclasses
import logging
import pickle
import random
import shutil
import subprocess

import av
import numpy as np
import pytest
from worlds.videos import BAD, FFMPEG, GOOD, encode, ffmpeg, number_of, numbers

from liteframe.data.video import frame_table, reader_decord, reader_pyav
from liteframe.data.video import source as video_source
from liteframe.data.video.reader import VideoError, probe, read_frames


@pytest.mark.parametrize("name", GOOD)
def test_every_frame_is_the_frame_asked_for(corpus, name):
    good, path = GOOD[name], corpus.path(name)
    info = probe(path)
    assert (info.frames, info.height, info.width) == (good.frames, good.height, good.width)
    expected = list(range(good.first, good.first + good.frames))
    assert numbers(read_frames(path, range(good.frames))) == expected
    # a fresh decoder for each, in random order: must not depend on what was read before
    draw = random.Random(name)
    for index in draw.sample(range(good.frames), min(good.frames, 16)):
        assert number_of(read_frames(path, [index])[0]) == expected[index]
    # several in one call, in any order, with repeats
    wanted = draw.choices(range(good.frames), k=6)
    assert numbers(read_frames(path, wanted)) == [expected[i] for i in wanted]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_typed_error(corpus, name):
    path, kind = corpus.path(name), BAD[name][1]
    with pytest.raises(VideoError) as caught:
        read_frames(path, range(probe(path).frames))
    error = caught.value
    assert error.kind == kind
    assert error.path == str(path)
    assert error.reason
    assert error.remedy


# 48 frames in groups of 12; an H.264 recovery point and MPEG-TS give no place to start from
@pytest.mark.parametrize(
    ("name", "anchors", "closed"),
    [
        ("h264.mp4", 4, True),
        ("h264.mkv", 4, True),
        ("vp9.webm", 4, True),
        ("hevc.mp4", 4, True),
        ("hevc_open_group.mp4", 4, False),
        ("open_group.mp4", 1, False),
        ("intra_refresh.mp4", 1, False),
        ("edit_list.mp4", 2, False),
        ("h264.ts", 0, False),
        ("mpeg4.avi", 0, False),
    ],
)
def test_decoding_starts_only_where_it_is_exact(corpus, name, anchors, closed):
    info = probe(corpus.path(name))
    assert (info.anchors, info.closed_groups) == (anchors, closed)


def test_random_access_decodes_one_group_only(corpus, monkeypatch):
    decoded = reader_pyav._decoded
    count = 0

    def counting(*arguments):
        nonlocal count
        for item in decoded(*arguments):
            count += 1
            yield item

    monkeypatch.setattr(reader_pyav, "_decoded", counting)
    assert numbers(read_frames(corpus.path("h264.mkv"), [2, 39])) == [2, 39]
    assert count == 3 + 4


@pytest.fixture
def forgotten(monkeypatch):
    """No file is remembered, so that what a test changes is used and forgotten with it."""
    monkeypatch.setattr(video_source, "_sources", video_source.OrderedDict())


@pytest.mark.parametrize("name", ["open_group.mp4", "intra_refresh.mp4", "edit_list_open_group.mp4"])
def test_a_wrong_anchor_is_noticed(corpus, forgotten, monkeypatch, name):
    monkeypatch.setattr(frame_table, "_refreshes", lambda *arguments: True)
    good, path = GOOD[name], corpus.path(name)
    for index in (good.frames - 1, 20, 13, 25):
        assert number_of(read_frames(path, [index])[0]) == good.first + index


def test_wrong_time_stamps_are_noticed(corpus, forgotten, monkeypatch):
    path = corpus.path("h264.mp4")
    table = video_source.source_of(str(path)).table
    table.pts = table.pts + np.arange(48) * 7
    assert numbers(read_frames(path, [30, 47])) == [30, 47]
    assert len(table.pts) == 0


def test_frames_that_decoding_does_not_give_are_an_error(corpus, forgotten):
    path = str(corpus.path("h264.mp4"))
    source = video_source.source_of(path)
    source.table.pts = np.append(source.table.pts, source.table.pts[-1] + 512)
    source.info = dataclasses.replace(source.info, frames=49)
    with pytest.raises(VideoError, match="only 48 of its 49 frames"):
        read_frames(path, [48])


def test_a_changed_file_is_looked_through_again(corpus, tmp_path):
    path = tmp_path / "video.mp4"
    shutil.copy(corpus.path("h264.mp4"), path)
    assert probe(path).frames == 48
    shutil.copy(corpus.path("one_frame.mp4"), path)
    assert probe(path).frames == 1


def test_rate_and_duration(corpus):
    info = probe(corpus.path("h264.mp4"))
    assert info.fps == pytest.approx(30)
    assert info.duration == pytest.approx(1.6)
    # frame n of this one is shown at (n + 3 * floor(n / 5)) / 30 s
    uneven = probe(corpus.path("variable_rate.mp4"))
    span = (47 + 3 * 9) / 30
    assert uneven.fps == pytest.approx(47 / span, rel=1e-3)
    with av.open(str(corpus.path("variable_rate.mp4"))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        end = max(float((packet.pts + packet.duration) * packet.time_base) for packet in packets)
    assert end > span
    assert uneven.duration == pytest.approx(end, abs=1e-6)
    assert probe(corpus.path("h264.ts")).fps == pytest.approx(30, rel=1e-3)
    assert probe(corpus.path("one_frame.mp4")).duration == pytest.approx(1 / 30)


def test_colours_are_those_of_ffmpeg(tmp_path):
    # yuv420p marked as BT.709; a reader that takes it for BT.601 is 10 and more levels off on this blue and green
    path = tmp_path / "colours.mp4"
    picture = np.zeros((64, 96, 3), dtype=np.uint8)
    picture[:, :32], picture[:, 32:64], picture[:, 64:] = (20, 200, 40), (30, 60, 220), (220, 30, 50)
    tags = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv")
    convert = ("-vf", "scale=out_color_matrix=bt709", "-pix_fmt", "yuv420p")
    encode(path, *convert, *tags, "-c:v", "libx264", "-qp", 1, frames=1, change=lambda image: picture)
    frame = read_frames(path, [0])[0]
    for x in (16, 48, 80):
        np.testing.assert_allclose(frame[32, x].astype(int), picture[32, x].astype(int), atol=4)
    shown = subprocess.run(
        [FFMPEG, "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    ).stdout
    theirs = np.frombuffer(shown, dtype=np.uint8).reshape(frame.shape)
    assert np.abs(frame.astype(int) - theirs).mean() < 2


@pytest.mark.parametrize("name", ["h264.mp4", "rotated_90.mp4"])
def test_scaling_in_the_decoder(corpus, name):
    frames = read_frames(corpus.path(name), [5, 17], size=(100, 140))
    assert frames.shape == (2, 100, 140, 3)
    assert numbers(frames) == [5, 17]


def test_limits(corpus, forgotten, monkeypatch):
    path = corpus.path("h264.mp4")
    with pytest.raises(VideoError, match="frame 48 was asked for; the file has 48 frames"):
        read_frames(path, [0, 48])
    with pytest.raises(VideoError, match="frame -1"):
        read_frames(path, [-1])
    with pytest.raises(VideoError, match="2 frames of 192x128 exceed") as caught:
        read_frames(path, [0, 1], max_bytes=2 * 192 * 128 * 3 - 1)
    assert caught.value.kind == "too_large"
    for arguments, message in (({"reader": "vlc"}, "known readers"), ({"size": (0, 4)}, "height, width")):
        with pytest.raises(ValueError, match=message):
            read_frames(path, [0], **arguments)
    with pytest.raises(ValueError, match="at least one frame"):
        read_frames(path, [])
    monkeypatch.setattr(video_source, "MAX_PIXELS", 192 * 128 - 1)
    video_source._sources.clear()
    with pytest.raises(VideoError, match="has frames of 192x128"):
        probe(path)
    monkeypatch.undo()
    monkeypatch.setattr(frame_table, "MAX_FRAMES", 47)
    with pytest.raises(VideoError, match="more than 47 frames"):
        video_source._look_through(str(path))


def test_a_change_of_size_is_an_error_unless_scaled(corpus, tmp_path):
    parts = [
        encode(tmp_path / f"{w}.ts", "-c:v", "libx264", "-pix_fmt", "yuv420p", frames=12, width=w) for w in (192, 256)
    ]
    path = tmp_path / "both.ts"
    ffmpeg("-i", f"concat:{parts[0]}|{parts[1]}", "-c", "copy", path)
    total = probe(path).frames
    with pytest.raises(VideoError, match="changes size: frame"):
        read_frames(path, range(total))
    assert numbers(read_frames(path, range(total), size=(128, 192)))[:12] == list(range(12))


def test_the_name_of_a_file_is_never_a_protocol(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("http:example.mp4", "concat:a.mp4", "-i.mp4", "ä ö%03d.mp4"):
        shutil.copy(corpus.path("h264.mp4"), tmp_path / name)
        assert numbers(read_frames(name, [11])) == [11]
    for name in ("http://127.0.0.1:9/a.mp4", "pipe:0", "a\0b.mp4", ""):
        with pytest.raises(VideoError):
            probe(name)


def test_without_decord_pyav_reads_its_files(corpus, monkeypatch, caplog):
    monkeypatch.setattr(reader_decord.importlib.util, "find_spec", lambda name: None)
    reader_decord.available.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert numbers(read_frames(corpus.path("h264.mp4"), [7], reader="decord")) == [7]
        assert numbers(read_frames(corpus.path("h264.mp4"), [8], reader="decord")) == [8]
    assert caplog.text.count("decord is not installed") == 1
    reader_decord.available.cache_clear()


def test_decord_reads_what_pyav_reads(corpus):
    path = corpus.path("h264.mp4")
    assert numbers(read_frames(path, [40, 3, 3], reader="decord")) == [40, 3, 3]
    with pytest.raises(VideoError) as caught:
        read_frames(corpus.path("playlist.mp4"), [0], reader="decord")
    assert caught.value.kind == "playlist"


def test_errors_survive_pickling():
    error = VideoError("/a.mp4", "truncated", "is cut off", "copy it")
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.kind, again.reason, again.remedy) == ("/a.mp4", "truncated", "is cut off", "copy it")
    assert str(again) == "/a.mp4: truncated: is cut off (copy it)"
    with pytest.raises(ValueError, match="unknown kind"):
        VideoError("/a.mp4", "odd", "")
