"""Reading video in a process that can be killed, since native decoders hang and crash where no exception reaches.

The child is child.py. Both exchange messages over pipes, each one a 4-byte length, a JSON header of that length, and
the raw frames where the header announces them. Nothing is pickled and torch is not imported.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import json
import logging
import multiprocessing.util
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from liteframe.data.video.errors import VideoError, VideoInfo

_log = logging.getLogger(__name__)

LENGTH = struct.Struct("<I")
_PIPE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PATIENCE = 4.0  # times the deadline that a child may wait for a processor on top of it
_ROOT = str(Path(__file__).resolve().parents[2])


class _Gone(Exception):
    """The child closed its pipe."""


class DecodeProcess:
    """`probe` and `read_frames` of reader.py in a child process, each call under a deadline.

    The child starts at the first call and serves until `close`. After a crash or a kill the next call starts another.
    An object that was pickled or carried over a fork starts a child of its own, so one object can be handed to all
    workers of a DataLoader. On Linux the child dies with the thread that started it.

    Args:
        deadline: seconds that one call may take, not counting time in which the child was ready to run but got no
            processor (up to four times as much again).
    """

    def __init__(self, deadline: float = 30.0):
        if not deadline > 0:
            raise ValueError(f"deadline is {deadline}; it must be a positive number of seconds")
        self.deadline = deadline
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._owner = os.getpid()
        self._lock = threading.Lock()

    def probe(self, path: str | os.PathLike[str]) -> VideoInfo:
        """Facts about a video, as `reader.probe`; broken time stamps are a warning.

        Raises:
            VideoError: also of kind "deadline" or "crash".
        """
        header, _ = self._call({"op": "probe", "path": os.fspath(path)})
        info = VideoInfo(**header["info"])
        if info.broken_stamps:
            _warn_once(os.fspath(path), info.broken_stamps)
        return info

    def read(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int],
        *,
        reader: str | None = "pyav",
        size: tuple[int, int] | None = None,
        then: Sequence[int] = (),
    ) -> np.ndarray:
        """Frames by index, uint8 `[T,H,W,3]`, as `reader.read_frames`.

        Args:
            path: a local file.
            indices: frame numbers from 0.
            reader: as of `reader.read_frames`.
            size: as of `reader.read_frames`.
            then: what the next calls will ask for, as many frames at a time as this one: they are decoded while the
                caller works, behind those of this call where they follow them. Frames are the same without it.

        Raises:
            VideoError: also of kind "deadline" or "crash".
            ValueError: bad arguments.
        """
        request = {"op": "read", "path": os.fspath(path), "indices": [int(i) for i in indices]}
        following = [int(i) for i in then]
        _, frames = self._call({**request, "reader": reader, "size": size and list(size), "then": following})
        assert frames is not None
        return frames

    def close(self) -> None:
        """Ends the child. The object can be used again."""
        if self._owner == os.getpid():
            self._kill()
        else:
            self._leave_to_owner()

    def interrupt(self) -> None:
        """Kills the child under another thread's call, which then raises `VideoError` of kind "crash"."""
        child = self._child
        if child is not None and self._owner == os.getpid():
            child.kill()

    def __enter__(self) -> DecodeProcess:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # attributes are missing if __init__ raised
        if getattr(self, "_child", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"deadline": self.deadline}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["deadline"])  # type: ignore[misc]

    def _call(self, request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
        if self._owner != os.getpid():
            self._leave_to_owner()
        path, begin = request["path"], time.monotonic()
        with self._lock:
            try:
                child = self._running()
                try:
                    self._send(child, request)
                except BrokenPipeError:  # it died between two calls, which is no fault of this file
                    self._kill()
                    child = self._running()
                    self._send(child, request)
                header, frames = self._receive(child, begin)
            except TimeoutError:
                self._kill()
                reason = f"decoding did not end within {self.deadline:g} s"
                raise VideoError(path, "deadline", reason) from None
            except (_Gone, BrokenPipeError):
                raise VideoError(path, "crash", self._obituary()) from None
            except BaseException:
                self._kill()  # Ctrl-C in the middle of an answer: the rest of it must not be taken for the next one
                raise
        if "error" in header:
            raise VideoError(**header["error"])
        if "value_error" in header:
            raise ValueError(header["value_error"])
        return header, frames

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._kill()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._child = subprocess.Popen(
            # -P: the working directory must not shadow modules
            [sys.executable, "-P", "-m", "liteframe.data.video.child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
        assert self._child.stdout is not None
        with contextlib.suppress(OSError, AttributeError):  # Linux, within the user's quota: fewer switches a frame
            fcntl.fcntl(self._child.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        return self._child

    @staticmethod
    def _send(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
        assert child.stdin is not None
        body = json.dumps(request).encode()
        data = memoryview(LENGTH.pack(len(body)) + body)
        while data:
            data = data[child.stdin.write(data) :]

    def _receive(self, child: subprocess.Popen[bytes], begin: float) -> tuple[dict[str, Any], np.ndarray | None]:
        assert child.stdout is not None
        pipe, starved = child.stdout.fileno(), _seconds_without_processor(child.pid)

        def left() -> float:
            seconds = begin + self.deadline - time.monotonic()
            if seconds > 0:
                return seconds
            # On a crowded machine the file is not to blame for a child that is ready and does not get a processor.
            return seconds + min(_seconds_without_processor(child.pid) - starved, _PATIENCE * self.deadline)

        def fill(target: memoryview) -> None:
            while target:
                while not select.select([pipe], [], [], max(0.0, left()))[0]:
                    if left() <= 0:
                        raise TimeoutError
                count = os.readv(pipe, [target])
                if count == 0:
                    raise _Gone
                target = target[count:]

        size = bytearray(LENGTH.size)
        fill(memoryview(size))
        body = bytearray(LENGTH.unpack(size)[0])
        fill(memoryview(body))
        header = json.loads(body)
        if "shape" not in header:
            return header, None
        frames = np.empty(header["shape"], dtype=np.uint8)
        fill(frames.data.cast("B"))
        return header, frames

    def _obituary(self) -> str:
        """Why the child died, and its last words."""
        assert self._child is not None
        assert self._errors is not None
        code = self._child.wait()
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        self._kill()
        return f"the decoding process died ({cause}){': ' + words[-1][:200] if words else ''}"

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._close_pipes()
        self._child = self._errors = None

    def _leave_to_owner(self) -> None:
        """After a fork: drops this process's ends of the pipes, leaves the child alone and starts without one."""
        if self._child is not None:
            self._child.returncode = 0  # or Popen would wait for a process that is not its own
        self._close_pipes()
        self._start_afresh()

    def _close_pipes(self) -> None:
        for pipe in (self._child and self._child.stdin, self._child and self._child.stdout, self._errors):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


@cache
def _warn_once(path: str, found: str) -> None:
    _log.warning("%s: %s", path, found)


def _seconds_without_processor(pid: int) -> float:
    """Seconds that a process's threads were ready to run and did not; 0 where the system (Linux) does not tell."""
    nanoseconds = 0
    with contextlib.suppress(OSError, IndexError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            nanoseconds += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def serve_parent(worker: int = 0) -> None:
    """Leave it to the parent what signals mean, and die with it (on Linux at once).

    Ctrl-C and SLURM's signals reach every process of a job: workers that died of them would end a run before it could
    save, and workers that outlived a killed parent would hold its locks and its memory.

    Such a worker does not mind `terminate()` either; the parent kills those that are left when it ends.

    Args:
        worker: number of a DataLoader's worker, which takes this as its worker_init_fn.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_workers() -> None:
    """Multiprocessing terminates daemons when Python ends and waits for them, for ever if they ignore SIGTERM."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each of them
    for worker in workers:
        worker.kill()


atexit.register(_kill_workers)  # after multiprocessing.util has registered its own, hence called before it
