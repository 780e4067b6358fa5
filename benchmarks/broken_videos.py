"""A thousand tiny videos, some of them broken in ten different ways, and a manifest that names them all."""

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from liteframe.data.manifest import VideoEntry, write_manifest

SIZE, FRAMES, FPS, SOURCES = 64, 24, 8, 8


def encode(path: Path, seed: int, *, faststart: bool) -> bytes:
    """A file of coloured waves (H.264, one group of pictures), with its index first or last."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    phase, turn = rng.uniform(0, 6.28, (3, 1, 1)), rng.uniform(2, 8, (3, 2, 1, 1))
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"preset": "veryfast"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            image = 127 + 120 * np.sin(phase + 0.3 * number + turn[:, 0] * x + turn[:, 1] * y)
            frame = av.VideoFrame.from_ndarray(image.transpose(1, 2, 0).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def encode_sound(path: Path) -> bytes:
    """A second of silence, without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for number in range(43):
            frame.pts = 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def zeroed(data: bytes) -> bytes:
    """The picture data's middle lost, as where a download left a hole."""
    first, last = len(data) // 3, 2 * len(data) // 3
    return data[:first] + bytes(last - first) + data[last:]


class Breaker:
    """Makes broken files out of good ones.

    Args:
        folder: for the material.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        self.index_first = encode(folder / "first.mp4", 100, faststart=True)
        self.index_last = encode(folder / "last.mp4", 100, faststart=False)
        self.sound = encode_sound(folder / "sound.mp4")
        self.ways: dict[str, Callable[[Path], object]] = {
            "cut off": lambda path: path.write_bytes(self.index_first[: len(self.index_first) * 2 // 3]),
            "without index": lambda path: path.write_bytes(self.index_last[: len(self.index_last) * 2 // 3]),
            "with a hole": lambda path: path.write_bytes(zeroed(self.index_first)),
            "empty": lambda path: path.write_bytes(b""),
            "an error page": lambda path: path.write_text("<!DOCTYPE html><html>404 Not Found</html>\n"),
            "sound only": lambda path: path.write_bytes(self.sound),
            "a playlist": lambda path: path.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n"),
            "a folder": lambda path: path.mkdir(),
            "a link to itself": lambda path: path.symlink_to(path),
            "missing": lambda path: None,
        }


def make_videos(folder: Path, files: int, broken: float, seed: int = 0) -> tuple[Path, dict[str, str]]:
    """Write `files` videos into a folder; returns the manifest and {path: how it is broken}."""
    (folder / "videos").mkdir(parents=True)
    material = Breaker(folder / "material")
    good = [encode(folder / "material" / f"{number}.mp4", number, faststart=True) for number in range(SOURCES)]
    ways = list(material.ways)
    chosen = random.Random(seed).sample(range(files), round(files * broken))
    how = {place: ways[number % len(ways)] for number, place in enumerate(chosen)}
    entries, listed = [], {}
    for place in range(files):
        path = folder / "videos" / f"{place:05d}.mp4"
        if place in how:
            material.ways[how[place]](path)
            listed[str(path)] = how[place]
        else:
            path.write_bytes(good[place % len(good)])
        entries.append(VideoEntry(str(path)))
    write_manifest(entries, folder / "manifest.jsonl")
    return folder / "manifest.jsonl", listed
