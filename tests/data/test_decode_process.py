import io
import itertools
import json
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from worlds.videos import BAD, number_of, numbers

from liteframe.data.video import child as decode_child
from liteframe.data.video import process as decode_process
from liteframe.data.video import reader_decord, reader_pyav
from liteframe.data.video.process import LENGTH, DecodeProcess
from liteframe.data.video.reader import VideoError, probe, read_frames


@pytest.fixture(scope="module")
def process():
    with DecodeProcess(deadline=60) as shared:
        yield shared


def test_gives_what_the_reader_gives(corpus, process):
    path = corpus.path("h264.mp4")
    assert process.probe(path) == probe(path)
    np.testing.assert_array_equal(process.read(path, [40, 3, 3]), read_frames(path, [40, 3, 3]))
    small = process.read(path, [7], size=(56, 84))
    assert small.shape == (1, 56, 84, 3)
    assert number_of(small[0]) == 7


def test_one_child_serves_many_calls(corpus, process):
    path = corpus.path("h264.mp4")
    process.probe(path)
    child = process._child.pid
    assert [number_of(process.read(path, [i])[0]) for i in range(0, 48, 5)] == list(range(0, 48, 5))
    assert process._child.pid == child


@pytest.mark.parametrize("name", ["playlist.mp4", "missing.mp4", "zeroed.mp4", "cut_off.mp4"])
def test_errors_cross_the_pipe_and_the_child_lives_on(corpus, process, name):
    child = process._child and process._child.pid
    with pytest.raises(VideoError) as caught:
        process.read(corpus.path(name), range(48))
    assert caught.value.kind == BAD[name][1]
    assert child in (None, process._child.pid)


def test_what_follows_is_read_before_it_is_asked_for(monkeypatch):
    events = []

    def read(path, indices, **how):
        events.append((*indices, how["keep_open"]))
        return np.zeros((len(indices), 1, 1, 3), np.uint8)

    def request(indices, then=()):
        words = {"op": "read", "path": "a", "indices": indices, "reader": None, "size": None, "then": list(then)}
        body = json.dumps(words).encode()
        return LENGTH.pack(len(body)) + body

    class Requests(io.BytesIO):
        def read(self, size):
            events.extend(["asked"] if size == LENGTH.size else [])
            return super().read(size)

    for name in ("freeze", "collect"):  # not of this process
        monkeypatch.setattr(decode_child.gc, name, lambda: None)
    monkeypatch.setattr(decode_child, "read_frames", read)
    decode_child._serve(Requests(request([0, 1], [2, 3, 4]) + request([2, 3], [4]) + request([9])), io.BytesIO())
    ahead = [(0, 1, True), (2, 3, True), "asked", (4, False)]
    assert events == ["asked", *ahead, "asked", (9, False), "asked"]


def test_what_was_told_to_follow_need_not_be_asked_for(corpus, process):
    path = corpus.path("h264.mp4")

    def read(*indices, then=()):
        return [number_of(frame) for frame in process.read(path, indices, then=then)]

    assert read(0, 7, then=(9, 40, 47)) == [0, 7]
    assert read(9, 40, then=(47,)) == [9, 40]
    assert read(3, 4, then=(5, 48)) == [3, 4]  # something else
    with pytest.raises(VideoError, match="the file has 48 frames"):
        read(5, 48)
    assert read(47) == [47]


def test_a_reading_that_goes_on_decodes_nothing_twice(corpus, monkeypatch):
    path, decoded = corpus.path("h264.mp4"), []

    def counted(*file):
        for frame in original(*file):
            decoded.append(frame)
            yield frame

    original = reader_pyav._decoded
    monkeypatch.setattr(reader_pyav, "_decoded", counted)
    parts = [read_frames(path, range(n, n + 4), keep_open=True) for n in range(0, 48, 4)]
    assert [number_of(frame) for part in parts for frame in part] == list(range(48))
    assert len(decoded) == 48
    decoded.clear()
    assert [number_of(frame) for frame in read_frames(path, [1, 2])] == [1, 2]  # back, and no more
    assert len(decoded) == 3
    assert reader_pyav._left_open is None


def test_bad_arguments_are_value_errors(corpus, process):
    with pytest.raises(ValueError, match="no frame index"):
        process.read(corpus.path("h264.mp4"), [])
    with pytest.raises(ValueError, match="known readers"):
        process.read(corpus.path("h264.mp4"), [0], reader="quicktime")
    with pytest.raises(VideoError, match="the file has 48 frames"):
        process.read(corpus.path("h264.mp4"), [48])


def test_a_hanging_child_is_killed_at_the_deadline(corpus):
    with DecodeProcess(deadline=60) as process:
        process.probe(corpus.path("h264.mp4"))
        stuck = process._child.pid
        process.deadline = 0.5
        os.kill(stuck, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(VideoError) as caught:
            process.read(corpus.path("h264.mp4"), [1])
        assert caught.value.kind == "deadline"
        assert 0.5 <= time.monotonic() - begin < 5
        assert not Path(f"/proc/{stuck}").exists()
        process.deadline = 60
        assert number_of(process.read(corpus.path("h264.mp4"), [9])[0]) == 9


def test_decord_on_mpegts_is_survived(corpus):
    # decord never returns from this (measured); where it is not installed PyAV answers
    path = corpus.path("one_group.ts")
    with DecodeProcess(deadline=3) as process:
        outcome = pytest.raises(VideoError, match="deadline") if reader_decord.available() else nullcontext()
        begin = time.monotonic()
        with outcome:
            process.read(path, [199], reader="decord")
        assert time.monotonic() - begin < 40
        process.deadline = 60
        assert number_of(process.read(path, [199])[0]) == 199


def test_waiting_for_a_processor_is_not_held_against_a_file_but_has_an_end(corpus, monkeypatch):
    with DecodeProcess(deadline=60) as process:
        process.probe(corpus.path("h264.mp4"))
        process.deadline = 0.2
        os.kill(process._child.pid, signal.SIGSTOP)
        waited = itertools.count()
        monkeypatch.setattr(decode_process, "_seconds_without_processor", lambda pid: next(waited))
        begin = time.monotonic()
        with pytest.raises(VideoError, match="deadline"):
            process.read(corpus.path("h264.mp4"), [1])
        assert 5 * 0.2 <= time.monotonic() - begin < 10


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_in_a_call_is_an_error_and_the_next_call_works(corpus, how):
    with DecodeProcess(deadline=60) as process:
        process.probe(corpus.path("h264.mp4"))
        child = process._child.pid
        os.kill(child, signal.SIGSTOP)  # so that the call is under way when the child dies
        threading.Timer(0.3, os.kill, (child, how)).start()
        threading.Timer(0.4, os.kill, (child, signal.SIGCONT)).start() if how != signal.SIGKILL else None
        with pytest.raises(VideoError) as caught:
            process.read(corpus.path("h264.mp4"), [1])
        assert caught.value.kind == "crash"
        assert how.name in caught.value.reason
        assert number_of(process.read(corpus.path("h264.mp4"), [9])[0]) == 9


def test_a_child_that_died_between_calls_is_replaced(corpus):
    with DecodeProcess(deadline=60) as process:
        process.probe(corpus.path("h264.mp4"))
        os.kill(process._child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process._child.pid, os.WEXITED | os.WNOWAIT)
        assert number_of(process.read(corpus.path("h264.mp4"), [9])[0]) == 9


def test_an_interrupted_answer_is_not_taken_for_the_next(corpus, monkeypatch):
    with DecodeProcess(deadline=60) as process:
        process.probe(corpus.path("h264.mp4"))
        receive = process._receive
        monkeypatch.setattr(process, "_receive", lambda child, begin: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            process.read(corpus.path("h264.mp4"), [1])
        monkeypatch.setattr(process, "_receive", receive)
        assert number_of(process.read(corpus.path("h264.mp4"), [9])[0]) == 9


def _read_in_fork(process, path, answer):
    answer.put(numbers(process.read(path, [5, 6])))


def test_works_over_pickle_and_fork(corpus, process):
    path = corpus.path("h264.mp4")
    process.probe(path)
    child = process._child.pid
    copy = pickle.loads(pickle.dumps(process))
    assert copy.deadline == process.deadline
    assert numbers(copy.read(path, [2])) == [2]
    assert copy._child.pid != child
    copy.close()
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    worker = context.Process(target=_read_in_fork, args=(process, path, answer), daemon=True)
    worker.start()
    assert answer.get() == [5, 6]
    worker.join(10)
    assert process._child.pid == child
    assert numbers(process.read(path, [7])) == [7]


def test_the_child_imports_no_torch():
    code = "import sys, liteframe.data.video.child; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'av'" in loaded
    assert "'torch'" not in loaded
    assert "'decord'" not in loaded


def test_the_childs_stdout_is_not_the_protocol(corpus, process):
    process.probe(corpus.path("h264.mp4"))
    links = Path(f"/proc/{process._child.pid}/fd")
    assert os.readlink(links / "1") == os.readlink(links / "2")


def test_the_child_dies_with_its_parent(corpus):
    code = (
        "import sys, time; from liteframe.data.video.process import DecodeProcess\n"
        "process = DecodeProcess(); process.probe(sys.argv[1]); print(process._child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, corpus.path("h264.mp4")], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
    until = time.monotonic() + 5
    # a killed orphan may stay as a zombie where nobody reaps it
    while time.monotonic() < until and _alive(child):
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_pictures_that_were_handed_over_are_let_go(corpus):
    """A frame of 4K takes 12 MB in the decoder; a child that keeps them grows by that much a call."""

    def held():
        text = Path(f"/proc/{decoder._child.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) >> 10

    with DecodeProcess() as decoder:
        for count in range(28):
            decoder.read(corpus.path("4k.mp4"), [count % 3])
            if count == 3:
                before = held()
        assert held() - before < 80
