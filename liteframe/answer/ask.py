"""One question about one video file, answered as the words are found: a session that keeps everything."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch

from liteframe.answer.frame_encoder import FrameEncoder, frame_encoder
from liteframe.answer.generate import check_text
from liteframe.answer.memory import StreamMemory
from liteframe.answer.positions import Keep, Positions
from liteframe.answer.session import StreamSession
from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import choose_frames

PART = 16  # frames that are read at once, if they are small; the next ones are decoded meanwhile
PART_BYTES = 256 << 20  # of frames at the file's own size that are held at once: ten of 4K
AHEAD = 8  # clips that may be read before they are encoded


def ask(
    model: Any,
    processor: Any,
    path: str | os.PathLike[str],
    question: str,
    *,
    frames: int = 64,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
    max_new_tokens: int = 512,
    system: str | None = None,
    deadline: float = 120.0,
    overlap: bool | None = None,
    memory: StreamMemory | None = None,
) -> Iterator[str]:
    """Stream a greedy answer, piece by piece; `"".join(ask(...))` is the whole.

    Args:
        model: of `load_video_llm`.
        processor: of `load_video_llm`.
        path: a local video file.
        question: without the video placeholder.
        frames: at most so many, spread evenly over the span.
        fps: frames a second, as many of them as `frames` allows; None takes `frames` whatever the rate.
        start: start of the span in seconds of the file's time line, as a player counts them; None is the video's.
        end: its end in seconds; None is the video's.
        max_new_tokens: longest answer.
        system: a system message; None sends none.
        deadline: seconds that reading the frames may take.
        overlap: read, encode and prefill at the same time, clip by clip; None does so on a GPU. On a CPU the three
            compete for the same cores, and prefill in parts is slower (benchmarks/latency.md).
        memory: what of the frames the language model is shown, such as `memories["window"](4096)`; None shows all.

    Raises:
        VideoError: the file or a frame of it cannot be decoded.
        ValueError: an argument is out of range, the text holds a control token or placeholder, or prompt and answer are
            longer than the language model reads.
    """
    asked = VideoQuestion.prepare(
        path, question, frames=frames, fps=fps, start=start, end=end, system=system, deadline=deadline
    )
    yield from asked.answer(model, processor, max_new_tokens=max_new_tokens, overlap=overlap, memory=memory)


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a file that is known to be there, which frames are looked at, and when they are shown.

    `prepare` makes it.

    Attributes:
        decoder: has looked through the file, and reads it; its process ends with the answer.
    """

    path: str
    question: str
    system: str | None
    indices: tuple[int, ...]
    times: tuple[float, ...]
    decoder: DecodeProcess

    @classmethod
    def prepare(
        cls,
        path: str | os.PathLike[str],
        question: str,
        *,
        frames: int,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        system: str | None = None,
        deadline: float = 120.0,
        sampling: str = "even",
    ) -> VideoQuestion:
        """Check all that can be checked without a model; arguments and errors as of ask and choose_frames."""
        check_text(question)
        check_text(system or "", "system message")
        decoder = DecodeProcess(deadline)
        try:
            timeline = decoder.probe(path).timeline
            indices = choose_frames(timeline, frames=frames, target_fps=fps, start=start, end=end, sampling=sampling)
        except BaseException:
            decoder.close()
            raise
        times = tuple(timeline.time(index) for index in indices)
        return cls(os.fspath(path), question, system, tuple(indices), times, decoder)

    def answer(
        self,
        model: Any,
        processor: Any,
        *,
        max_new_tokens: int,
        overlap: bool | None = None,
        memory: StreamMemory | None = None,
        encoder: FrameEncoder | None = None,
        positions: Positions = Keep(),  # noqa: B008  # a frozen one
        labels: str = "frames",
        seen: Callable[[StreamSession], object] = lambda session: None,
    ) -> Iterator[str]:
        """Read the frames and stream the answer.

        Arguments and errors as of ask; `encoder`, `positions` and `labels` as of StreamSession; `seen` is given the
        session when it has seen all frames.
        """
        encoder = frame_encoder(model, processor) if encoder is None else encoder
        how: dict[str, Any] = {"system": self.system, "encoder": encoder, "positions": positions, "prefill": overlap}
        session = StreamSession(model, processor, memory, labels=labels, **how)
        with self.decoder as decoder:
            most = session.clip_frames if session.prefill else PART
            parts = read_resized(encoder, decoder, self.path, self.indices, most)
            with closing(read_ahead(parts, AHEAD) if session.prefill else parts) as ready:
                for frames in ready:
                    session.add(frames, self.times[session.frames : session.frames + len(frames)], every=True)
        seen(session)
        yield from session.stream(self.question, max_new_tokens=max_new_tokens)


def read_resized(
    encoder: FrameEncoder,
    decoder: DecodeProcess,
    path: str | os.PathLike[str],
    indices: Sequence[int],
    most: int = PART,
) -> Generator[np.ndarray]:
    """Frames of a file at the model's size, uint8 [n,h,w,3], part by part: few are held at the file's own size.

    They are the pixels that the model's own processor makes of whole frames.

    Args:
        encoder: says how the model wants its frames.
        decoder: reads them.
        path: a local video file.
        indices: of the frames.
        most: frames of a part.

    Raises:
        VideoError: the file or a frame of it cannot be decoded.
    """
    info = decoder.probe(path)
    held = max(1, PART_BYTES // (info.height * info.width * 3))
    few = max(1, held // 8)  # resizing makes copies
    for first in range(0, len(indices), min(most, held)):
        last = first + min(most, held)
        frames = decoder.read(path, indices[first:last], then=indices[last:])
        small = [encoder.resized(frames[i : i + few]) for i in range(0, len(frames), few)]
        del frames  # before the next ones are there
        yield torch.cat(small).permute(0, 2, 3, 1).numpy()  # [n,h,w,3]


def read_ahead(parts: Iterator[np.ndarray], most: int) -> Generator[np.ndarray]:
    """Parts of a video [n,H,W,3], read in a thread of its own, as many at a time as are ready.

    Raises:
        Exception: what reading raised, after the parts before it.
    """
    queue: Queue[Any] = Queue(most)
    stop = Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def read() -> None:
        last: BaseException | None = None
        try:
            for part in parts:
                if not put(part):
                    return
        except BaseException as error:  # raised again where the parts are used
            last = error
        put(last)

    thread = Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            ready = [queue.get()]
            while isinstance(ready[-1], np.ndarray):
                try:
                    ready.append(queue.get_nowait())
                except Empty:
                    break
            clips = [item for item in ready if isinstance(item, np.ndarray)]
            if clips:
                yield np.concatenate(clips)
            if not isinstance(ready[-1], np.ndarray):
                if ready[-1] is not None:
                    raise ready[-1]
                return
    finally:
        stop.set()
        thread.join()
