"""A camera that runs for long and fails on the way, through all that `liteframe stream` does with one.

python benchmarks/stream_soak.py [--frames 100000] [--memories window:256 ...] [-o benchmarks]

A server on this machine sends H.264 in Matroska over TCP, as fast as frames are looked at. Sixteen times it fails: it
breaks the connection, damages a packet, lets its time stamps jump by an hour, or falls silent. The language model is
the tiny InternVL of toyworld, the encoder a random student. Writes stream_soak.{json,md}, a memory after another.
"""

import argparse
import io
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import av
import numpy as np
import torch
from stream_memory import ROOT, measured, small_pair

from liteframe.answer.follow import follow
from liteframe.answer.memory import parse_memory
from liteframe.answer.positions import Compact, Keep
from liteframe.answer.session import StreamSession
from liteframe.answer.sources import Frame, Source
from liteframe.files import write_atomically, write_json
from liteframe.training.report import environment

MEMORIES = ("window:256", "saliency:256")
FAULTS = ("cut", "damage", "jump", "silence")
TIMES = 4  # each of them
FPS = 25
GROUP = 8  # frames from key frame to key frame
AHEAD = 48  # frames that the camera is ahead of who looks, fewer than a source holds
QUESTION = "Which way does the red circle move?"
SAID = {"cut": "lost (", "damage": "damaged", "jump": "time stamps jump", "silence": "nothing has come for"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run each memory, write the figures after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000, help="frames of the stream (default 100000)")
    parser.add_argument("--memories", nargs="+", default=MEMORIES, help="NAME:BUDGET each")
    parser.add_argument("--stall", type=float, default=2.0, help="as of liteframe stream (default here 2)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks")
    args = parser.parse_args(argv)
    pair = small_pair()
    rows: list[dict[str, Any]] = []
    for name in args.memories:
        rows.append(soak(pair, name, args.frames, args.stall))
        print({key: value for key, value in rows[-1].items() if key != "marks"}, flush=True)
        facts = {"frames": args.frames, "environment": environment(torch.device("cpu")), "memories": rows}
        write_json(args.output / "stream_soak.json", facts)
        write_atomically(args.output / "stream_soak.md", table(facts).encode())


def soak(pair: Any, name: str, frames: int, stall: float) -> dict[str, Any]:
    """Follow the camera until so many frames were seen; what was held on the way, said and answered."""
    memory = parse_memory(name)
    session = StreamSession(*pair, memory, fps=FPS, positions=Compact() if memory.of_cache else Keep())
    plan = [(frames * (2 * number + 1) // (2 * TIMES * len(FAULTS)), FAULTS[number % 4]) for number in range(4 * TIMES)]
    said: list[str] = []
    marks: list[dict[str, int]] = []
    asked = [frames * number // 20 for number in range(1, 20)]

    def typed() -> Iterator[str]:
        if session.frames >= len(marks) * frames // 10:
            marks.append(mark(session))
        if asked and session.frames >= asked[0]:
            asked.pop(0)
            yield QUESTION

    camera = Camera(plan, lambda: session.frames, stall)
    source = Source(camera.address, fps=FPS, start=None, stall=stall, notify=said.append)
    begin = time.monotonic()
    answers = list(follow(session, until(source, session, frames), [], typed, max_new_tokens=4))
    seconds = time.monotonic() - begin
    camera.close()
    counts = {fault: sum(words in text for text in said) for fault, words in SAID.items()}
    return {
        "memory": name,
        "seconds": round(seconds, 1),
        "milliseconds_per_clip": round(1000 * seconds / (frames / session.clip_frames), 2),
        "faults": dict(camera.done),
        "said": counts,
        "left_out": source.dropped,
        "answers": len(answers),
        "first_word_milliseconds": [round(1000 * answer.first_word, 1) for answer in answers],
        "marks": [*marks, mark(session)],
    }


def until(source: Source, session: StreamSession, frames: int) -> Iterator[Frame | None]:
    """What a source gives, until a session has seen so many frames."""
    for frame in source:
        yield frame
        if session.frames >= frames:
            return


def mark(session: StreamSession) -> dict[str, int]:
    """What is held now, and what the process has resident."""
    size = session.size()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"frames": session.frames, "tokens": size.tokens, "bytes": size.bytes, "resident_mib": resident >> 20}


class Camera:
    """A server that shows the same seconds again and again, and fails as planned.

    Args:
        plan: at which frame, what.
        shown: how many frames were looked at.
        stall: seconds of silence that the other side takes for a stalled source.
    """

    def __init__(self, plan: list[tuple[int, str]], shown: Any, stall: float) -> None:
        self.plan, self.shown, self.stall = list(plan), shown, stall
        self.done = dict.fromkeys(FAULTS, 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._stop = Event()
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._sent = 0
        self._seconds = film()
        self._thread = Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._stop.set()
        self._server.close()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                try:
                    self._show(connection)
                except (OSError, av.error.FFmpegError):
                    continue  # the other side has gone

    def _show(self, connection: socket.socket) -> None:
        """One connection, until it is cut."""
        self._sent, jumped, number = self.shown(), 0, 0
        writer = av.open(Sink(connection), "w", format="matroska", options={"live": "1", "cluster_time_limit": "100"})
        with av.open(io.BytesIO(self._seconds)) as reader, writer as out:
            template = reader.streams.video[0]
            stream = out.add_stream_from_template(template)
            packets = [(bytes(packet), packet.is_keyframe) for packet in reader.demux(template) if packet.size]
            while not self._stop.is_set():
                data, key = packets[number % len(packets)]
                fault = self.plan[0][1] if self.plan and self.shown() >= self.plan[0][0] and key and number else None
                if fault is not None:
                    self.plan.pop(0)
                    self.done[fault] += 1
                if fault == "cut":
                    return
                if fault == "damage":
                    data = b"\xff" * len(data)
                if fault == "jump":
                    jumped += 3600 * 1000
                if fault == "silence":
                    self._stop.wait(1.5 * self.stall)
                packet = av.Packet(data)
                packet.stream, packet.is_keyframe = stream, key
                packet.time_base = stream.time_base
                stamp = round((1000 * number / FPS + jumped) / 1000 / stream.time_base)
                packet.pts = packet.dts = stamp
                out.mux(packet)
                number += 1
                self._sent += 1
                self._wait()

    def _wait(self) -> None:
        """Until who looks has come near; frames that were lost are not waited for."""
        seen, since = self.shown(), time.monotonic()
        while self._sent - seen > AHEAD and not self._stop.is_set():
            time.sleep(0.001)
            if (now := self.shown()) != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > 1.0:
                self._sent = seen
                return


class Sink:
    """What PyAV writes to, a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def write(self, data: bytes) -> int:
        """Send it."""
        self._connection.sendall(data)
        return len(data)


def film() -> bytes:
    """Noise that drifts, 400 frames of 64 x 64, as H.264 in Matroska."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 80, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": str(GROUP), "bf": "0", "preset": "ultrafast"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(400):
            image = np.ascontiguousarray(noise[number // 50][number % 16 : number % 16 + 64])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


def table(facts: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# A camera that runs for long and fails on the way",
        "",
        f"{facts['frames']:,} frames of 64 x 64 over TCP through the tiny InternVL of toyworld with a random student, "
        f"asked 19 times; `python benchmarks/stream_soak.py --frames {facts['frames']}`. Faults, of each kind as often "
        "as said: the connection breaks, a packet is damaged, time stamps jump by an hour, nothing comes.",
        "",
        "| memory | tokens held: after a tenth, at the end | bytes: after a tenth, at the end | resident MiB: after a "
        "tenth, at the end | faults: broken, damaged, jumped, silent | said of them | left out | ms a clip | ms to the "
        "first word: first, last question |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in facts["memories"]:
        early, late = row["marks"][1], row["marks"][-1]
        first = row["first_word_milliseconds"]
        done, said = (", ".join(str(row[name][fault]) for fault in FAULTS) for name in ("faults", "said"))
        lines.append(
            f"| {row['memory']} | {early['tokens']}, {late['tokens']} | {early['bytes']:,}, {late['bytes']:,} | "
            f"{early['resident_mib']}, {late['resident_mib']} | {done} | {said} | {row['left_out']:,} | "
            f"{row['milliseconds_per_clip']} | "
            f"{first[0]}, {first[-1]} |"
        )
    said = (
        "A silence is said, and the connection opened anew, so more connections are lost than broken. The machine did "
        "other work, which went first: times are long, and where the process got none, frames were left out and "
        "connections lost."
    )
    return "\n".join([*lines, "", said, "", measured(facts["environment"]), ""])


if __name__ == "__main__":
    main()
