"""Frames of a source as they come: a file, a folder that grows, a camera or network stream, or standard input.

Sources fail: a connection breaks, a packet is damaged, a clock jumps, nothing comes. Each is said and survived.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import av
import numpy as np

from liteframe.data.video.orientation import FrameConverter, pixel_aspect
from liteframe.data.video.sampling import next_due
from liteframe.pictures import PictureError, read_picture

AHEAD = 64  # frames that wait for the model at most
JUMP = 10.0  # seconds between two frames that no source leaves out
RETRIES = 5  # to reach a source that was lost, after 1, 2, 4, 8 and 16 times WAIT
WAIT = 1.0  # seconds
POLL = 0.2  # seconds between two looks at a folder
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
Notify = Callable[[str], None]


def is_live(name: str) -> bool:
    """Whether a source is a camera or a network stream, which does not wait for who looks at it."""
    return "://" in name or name.startswith("/dev/")


def check_source(name: str) -> None:
    """Refuse a source of which it is known without opening it that it is none.

    Raises:
        ValueError: there is no such file or folder.
    """
    if not (is_live(name) or name == "-" or Path(name).exists()):
        raise ValueError(f"{name}: no such file or folder; a camera or network stream has a name such as rtsp://...")


class Clock:
    """Makes ascending seconds of what a source says of its frames.

    Args:
        fps: frames a second of a source that does not say.
        start: seconds at which the first frame stands.
        jump: seconds between two frames that are believed.
        notify: is told where stamps fall back or jump.
    """

    def __init__(self, fps: float, start: float, jump: float, notify: Notify) -> None:
        self.step, self.jump, self.notify = 1 / fps, jump, notify
        self.now = start
        self._offset: float | None = None  # from the source's seconds to ours
        self._stamp = 0.0

    def __call__(self, stamp: float | None) -> float:
        """Seconds of the next frame, given its stamp."""
        if stamp is None:
            self.now, self._offset = self.now + (0.0 if self._offset is None else self.step), self._offset or 0.0
            return self.now
        if self._offset is None:
            self._offset = self.now - stamp
        elif not self._stamp <= stamp <= self._stamp + self.jump:
            self.notify(f"time stamps jump from {self._stamp:.2f} s to {stamp:.2f} s; going on at {self.now:.2f} s")
            self._offset = self.now + self.step - stamp
        self.now, self._stamp = max(self.now, stamp + self._offset), stamp
        return self.now

    def restart(self) -> None:
        """The source was reached again: its seconds may begin anew."""
        self.now, self._offset = self.now + self.step, None


@dataclass(frozen=True)
class Frame:
    """One frame [H,W,3] uint8, and its time in seconds from the start of the stream."""

    time: float
    image: np.ndarray


class Source:
    """Reads frames ahead in a thread, and none that would not be used.

    Args:
        name: a file, a folder that pictures are written into, a URL or device that PyAV opens, or "-".
        fps: frames a second that are used.
        start: seconds up to which a file or folder was seen before; others go on from there.
        stall: seconds without a frame after which that is said, and after which a folder has ended.
        notify: is told what went wrong.

    Raises:
        ValueError: there is no such file or folder.
    """

    def __init__(self, name: str, *, fps: float, start: float | None, stall: float, notify: Notify) -> None:
        self.name, self.fps, self.stall, self.notify = name, fps, stall, notify
        check_source(name)
        self.live, self.folder = is_live(name), Path(name).is_dir()
        self.seekable = not self.live and name != "-"
        begin = 0.0 if self.seekable or start is None else start + 1 / fps
        self._clock = Clock(fps, begin, math.inf if self.seekable else JUMP, notify)
        self._decoded = 0  # frames
        self._due = start + 1 / fps if start is not None else 0.0
        self._queue: Queue[Any] = Queue(AHEAD)
        self._stop = Event()
        self.dropped = 0  # frames for which the model was too slow

    def __iter__(self) -> Iterator[Frame | None]:
        """Frames in the order of time; None where none has come for half a second, so that questions can be answered.

        Raises:
            Exception: what reading raised.
        """
        thread = Thread(target=self._read, daemon=True)
        thread.start()
        try:
            since, said = time.monotonic(), False
            while True:
                try:
                    item = self._queue.get(timeout=min(0.5, self.stall))
                except Empty:
                    if time.monotonic() - since > self.stall and not (said or self.folder):
                        self.notify(f"{self.name}: nothing has come for {self.stall:g} s; waiting")
                        said = True
                    yield None
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                since, said = time.monotonic(), False
                yield item
        finally:
            self._stop.set()
            thread.join(timeout=1.0)

    def _read(self) -> None:
        last: BaseException | None = None
        try:
            if self.folder:
                self._read_folder()
            else:
                self._read_stream()
        except BaseException as error:  # raised again where frames are used
            last = error
        self._put(last)

    def _put(self, item: Any) -> None:
        """Wait for room."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return
            except Full:
                continue

    def _offer(self, stamp: float | None, image: Callable[[], np.ndarray]) -> None:
        """Take a frame if it is time for one; only then its pixels are made."""
        seconds = self._clock(stamp)
        due, self._due = self._due, next_due(self._due, seconds, self.fps)
        if self._due == due:
            return
        if not (self.live and self._queue.full()):
            self._put(Frame(seconds, image()))
            return
        self.dropped += 1  # what is live does not wait
        if self.dropped == 1:
            self.notify(f"{self.name}: frames come faster than the model sees them; some are left out")

    def _read_stream(self) -> None:
        lost = 0
        while not self._stop.is_set():
            before = self._decoded
            try:
                self._decode()
            except (av.error.FFmpegError, OSError) as error:
                if not self.live:
                    raise ValueError(f"{self.name}: cannot be read on: {error}") from error
                reason = str(error)
            else:
                reason = "it ended"
            if not self.live:
                if self._decoded == 0:
                    raise ValueError(f"{self.name}: holds no frame that can be decoded")
                return
            lost = lost if self._decoded == before else 0
            if lost == RETRIES:
                raise ValueError(f"{self.name}: lost ({reason}), and not reached again in {RETRIES} tries")
            wait = WAIT * 2**lost
            self.notify(f"{self.name}: lost ({reason}); trying again in {wait:g} s")
            self._stop.wait(wait)
            lost += 1
            self._clock.restart()

    def _decode(self) -> None:
        """All frames of one connection, until it ends."""
        file: Any = sys.stdin.buffer if self.name == "-" else self.name
        how: dict[str, Any] = {"timeout": (self.stall, self.stall)} if self.live else {}
        if self.name.startswith("/dev/video"):
            how["format"] = "v4l2"
        bad = 0
        with av.open(file, **how) as container:
            if not container.streams.video:
                raise ValueError(f"{self.name}: holds no video")
            stream = container.streams.video[0]
            convert = FrameConverter(self.name, None, pixel_aspect(stream))
            for packet in container.demux(stream):
                if self._stop.is_set():
                    return
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    bad += 1
                    if bad == 1:
                        self.notify(f"{self.name}: a packet at {self._clock.now:.2f} s is damaged; its frames are lost")
                    continue
                for frame in frames:
                    self._decoded += 1
                    self._offer(frame.time, partial(convert, frame))
        if bad > 1:
            self.notify(f"{self.name}: {bad} packets were damaged")

    def _read_folder(self) -> None:
        """Pictures in the order of their names, one each 1 / fps seconds; the folder ends when none comes any more."""
        folder, seen, since = Path(self.name), "", time.monotonic()
        while not self._stop.is_set():
            names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICTURES)
            fresh = [name for name in names if name > seen]
            for name in fresh:
                waited = time.monotonic() - since
                try:
                    image = read_picture(folder / name)
                except PictureError as error:
                    if name == fresh[-1] and waited < self.stall:
                        break  # it may be still being written
                    self.notify(f"{folder / name}: {error}; left out")
                else:
                    self._offer(None, partial(np.asarray, image))
                seen, since = name, time.monotonic()
            if time.monotonic() - since >= self.stall:
                self.notify(f"{self.name}: no new picture for {self.stall:g} s; taken as its end")
                return
            self._stop.wait(POLL)
