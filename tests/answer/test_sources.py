"""Frames of streams as they come, and what goes wrong with streams."""

import io
import shutil
import sys
import threading
import time
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from worlds.ctd import write_video

from liteframe.answer import sources
from liteframe.answer.sources import Clock, Source
from liteframe.data.video.process import DecodeProcess


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("stream") / "a.mp4", frames=40, fps=8, seed=3)


@pytest.fixture
def told():
    return []


@pytest.fixture
def watch(told):
    """A source that writes what it says into `told`."""
    settings = {"fps": 2.0, "start": None, "stall": 5.0}
    return lambda name, **given: Source(str(name), **{**settings, **given}, notify=told.append)


def frames_of(source):
    return [frame for frame in source if frame is not None]


def test_a_file_gives_frames_at_the_rate(watch, video, told):
    seen = frames_of(watch(video))
    assert [frame.time for frame in seen] == pytest.approx([number / 2 for number in range(10)])
    with DecodeProcess() as decoder:
        expected = decoder.read(video, range(0, 40, 4))
    assert np.array_equal(np.stack([frame.image for frame in seen]), expected)
    again = frames_of(watch(video, start=2.0))
    assert [frame.time for frame in again] == pytest.approx([2.5, 3.0, 3.5, 4.0, 4.5])
    assert np.array_equal(again[0].image, seen[5].image)
    assert told == []


def test_standard_input_is_a_stream(watch, video, tmp_path, monkeypatch):
    import av

    stream = io.BytesIO()
    with av.open(str(video)) as source, av.open(stream, "w", format="matroska") as out:
        track = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                out.mux(packet)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream.getvalue())))
    assert [frame.time for frame in frames_of(watch("-"))] == pytest.approx([number / 2 for number in range(10)])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stream.getvalue())))
    later = frames_of(watch("-", start=60.0))
    assert [frame.time for frame in later] == pytest.approx([60.5 + number / 2 for number in range(10)])


def test_a_clock_that_jumps_is_told_and_goes_on(told):
    clock = Clock(2.0, 0.0, 10.0, told.append)
    assert [clock(stamp) for stamp in (100.0, 100.5, 101.5)] == [0.0, 0.5, 1.5]
    assert [clock(stamp) for stamp in (3.0, 3.5)] == [2.0, 2.5]
    assert [clock(stamp) for stamp in (9000.0, 9001.0)] == [3.0, 4.0]
    assert told == [
        "time stamps jump from 101.50 s to 3.00 s; going on at 1.50 s",
        "time stamps jump from 3.50 s to 9000.00 s; going on at 2.50 s",
    ]
    clock.restart()
    assert [clock(stamp) for stamp in (0.0, 0.25)] == [4.5, 4.75]
    silent = Clock(4.0, 1.0, 10.0, told.append)
    assert [silent(None) for _ in range(3)] == [1.0, 1.25, 1.5]


def test_a_folder_that_grows(watch, tmp_path, told):
    def write():
        for number in range(6):
            image = Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8))
            image.save(tmp_path / "part.tmp", format="png")
            shutil.move(tmp_path / "part.tmp", tmp_path / f"{number:03}.png")
            if number == 2:
                (tmp_path / "002b.png").write_bytes(b"no picture")
            time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    seen = frames_of(watch(tmp_path, stall=1.0))
    writer.join()
    assert [frame.image[0, 0, 0] for frame in seen] == [0, 10, 20, 30, 40, 50]
    assert [frame.time for frame in seen] == [number / 2 for number in range(6)]
    assert "002b.png: is not an image" in told[0]
    assert told[1].endswith("no new picture for 1 s; taken as its end")
    assert len(told) == 2


def test_a_live_source_is_reached_again(watch, video, told, monkeypatch):
    monkeypatch.setattr(sources, "WAIT", 0.001)
    live = watch(f"file://{video}")
    seen = list(islice((frame for frame in live if frame is not None), 25))
    times = [frame.time for frame in seen]
    assert times == sorted(set(times))
    assert np.array_equal(seen[0].image, seen[10].image)
    assert told[0].endswith("lost (it ended); trying again in 0.001 s")
    gone = watch(f"file://{video}.none")
    with pytest.raises(ValueError, match=r"lost \(.*No such file.*\), and not reached again in 5 tries"):
        list(gone)


def test_a_stalled_source_is_told_and_questions_go_on(watch, told, monkeypatch):
    monkeypatch.setattr(Source, "_read_stream", lambda self: self._stop.wait(20))
    waiting = iter(watch("rtsp://nowhere", stall=0.2))
    assert [next(waiting) for _ in range(4)] == [None] * 4
    waiting.close()
    assert told == ["rtsp://nowhere: nothing has come for 0.2 s; waiting"]


def test_a_model_too_slow_for_a_live_source_loses_frames_and_knows(watch, video, told, monkeypatch):
    monkeypatch.setattr(sources, "AHEAD", 2)
    monkeypatch.setattr(sources, "RETRIES", 0)
    live = watch(f"file://{video}", fps=8.0)
    ready = iter(live)
    first = next(ready)
    time.sleep(1.5)
    assert first.time == 0.0
    assert live.dropped > 0
    assert any("faster than the model" in text for text in told)
    ready.close()


def test_a_damaged_packet_costs_its_frames(watch, tmp_path, told):
    path = write_video(tmp_path / "a.mp4", frames=40, fps=8, seed=3)
    import av

    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    position, size = packets[20]
    data[position : position + size] = b"\xff" * size
    path.write_bytes(bytes(data))
    seen = frames_of(watch(path, fps=8.0))
    assert 20 <= len(seen) < 41
    assert any("is damaged" in text for text in told)


def test_what_is_no_source_is_refused(watch, tmp_path):
    with pytest.raises(ValueError, match=r"no such file or folder; a camera or network stream has a name such as"):
        watch(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="cannot be read on"):
        list(watch(tmp_path / "text.mp4"))
