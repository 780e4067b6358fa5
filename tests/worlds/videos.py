"""Videos of many kinds, made on demand; each frame carries its own number as black and white blocks.

So exactness is checked against what is in the picture, not against some decoder's counting.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
BITS = 8
FRAMES, WIDTH, HEIGHT, FPS = 48, 192, 128, 30


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame uint8 `[H,W,3]`: number in the first quarter, its complement in the second, moving colours below."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    x, y = np.arange(width), np.arange(height)[:, None]
    image[..., 0] = (x + 5 * number) % 256
    image[..., 1] = (2 * y + 3 * number) % 256
    image[..., 2] = (x % 256).astype(np.uint8) + ((y - 7 * number) % 256).astype(np.uint8)
    for bit in range(BITS):
        columns = slice(bit * width // BITS, (bit + 1) * width // BITS)
        value = 235 if number >> bit & 1 else 16
        image[: height // 4, columns] = value
        image[height // 4 : height // 2, columns] = 251 - value
    return image


def number_of(image: np.ndarray) -> int:
    """The number in a decoded frame; ValueError if it cannot be read for certain."""
    height, width, _ = image.shape
    number = 0
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        margin = (right - left) // 4
        block = image[: height // 2, left + margin : right - margin].mean(axis=(1, 2))
        quarter = height // 4
        edge = quarter // 4
        upper, lower = block[edge : quarter - edge].mean(), block[quarter + edge : 2 * quarter - edge].mean()
        if abs(upper - lower) < 120:
            raise ValueError(f"bit {bit} is not readable: {upper:.0f} against {lower:.0f}")
        number |= int(upper > lower) << bit
    return number


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers in frames `[T,H,W,3]`."""
    return [number_of(frame) for frame in frames]


def ffmpeg(*arguments: object, stdin: bytes | None = None) -> None:
    """Runs the bundled ffmpeg; its errors fail the test."""
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.decode()}")


def encode(
    path: Path,
    *options: object,
    frames: int = FRAMES,
    width: int = WIDTH,
    height: int = HEIGHT,
    change: Callable[[np.ndarray], np.ndarray] = lambda image: image,
) -> Path:
    """Encodes numbered frames with the given ffmpeg output options; `change` alters what is stored."""
    images = [change(draw(i, width, height)) for i in range(frames)]
    rows, columns, _ = images[0].shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{columns}x{rows}", "-r", FPS, "-i", "-")
    data = b"".join(np.ascontiguousarray(image).tobytes() for image in images)
    ffmpeg(*raw, *options, path, stdin=data)
    return path


def _x264(*parameters: str) -> tuple[object, ...]:
    joined = ":".join(("keyint=12", "min-keyint=12", "scenecut=0", *parameters))
    return "-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p", "-x264-params", joined


def _x265(*parameters: str, pix_fmt: str = "yuv420p") -> tuple[object, ...]:
    joined = ":".join(("log-level=error", "pools=none", "keyint=12", "min-keyint=12", "scenecut=0", *parameters))
    return "-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", pix_fmt, "-x265-params", joined


def _rotated(angle: int) -> Callable[[Corpus, Path], None]:
    def make(corpus: Corpus, path: Path) -> None:
        turns = angle // 90
        stored = encode(path.with_suffix(".raw.mp4"), *_x264("bframes=3"), change=lambda image: np.rot90(image, -turns))
        ffmpeg("-display_rotation:v:0", angle, "-i", stored, "-c", "copy", path)

    return make


def _mirrored(corpus: Corpus, path: Path) -> None:
    stored = encode(path.with_suffix(".raw.mp4"), *_x264(), change=lambda image: image[:, ::-1])
    ffmpeg("-display_hflip:v:0", "-i", stored, "-c", "copy", path)


def _copy(source: str, *options: object, before: tuple[object, ...] = ()) -> Callable[[Corpus, Path], None]:
    return lambda corpus, path: ffmpeg(*before, "-i", corpus.path(source), "-c", "copy", *options, path)


def _encoded(*options: object, **size: int) -> Callable[[Corpus, Path], None]:
    return lambda corpus, path: encode(path, *options, **size)  # type: ignore[arg-type, return-value]


def _cut(source: str, *, keep: float = 1.0, skip: float = 0.0, align: int = 1) -> Callable[[Corpus, Path], None]:
    def make(corpus: Corpus, path: Path) -> None:
        data = corpus.path(source).read_bytes()
        path.write_bytes(data[int(len(data) * skip) // align * align : int(len(data) * keep)])

    return make


def _with_sound(corpus: Corpus, path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=frequency=300:duration=2")
    ffmpeg(*sound, "-i", corpus.path("h264.mp4"), "-map", "0", "-map", "1", "-c:v", "copy", "-c:a", "aac", path)


def _cover_art(corpus: Corpus, path: Path) -> None:
    cover = path.with_suffix(".png")
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64", "-frames:v", 1, cover)
    inputs = ("-i", cover, "-i", corpus.path("h264.mp4"))
    ffmpeg(*inputs, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic", path)


@dataclass(frozen=True)
class Good:
    """How to make a readable video, and what is in it."""

    make: Callable[[Corpus, Path], None]
    first: int = 0
    frames: int = FRAMES
    width: int = WIDTH
    height: int = HEIGHT


_VP9 = ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", 8, "-g", 12, "-b:v", "400k", "-pix_fmt", "yuv420p")
_TWO_PASS_LIKE = ("-c:v", "libvpx-vp9", "-deadline", "good", "-cpu-used", 5, "-g", 12, "-auto-alt-ref", 1)
_AV1 = ("-c:v", "libsvtav1", "-preset", 12, "-g", 8, "-svtav1-params", "lp=1", "-pix_fmt", "yuv420p")
_UNEVEN = "setpts='(N+floor(N/5)*3)/30/TB'"

GOOD: dict[str, Good] = {
    "h264.mp4": Good(_encoded(*_x264("bframes=3", "b-pyramid=normal"), "-movflags", "faststart")),
    "h264.mkv": Good(_copy("h264.mp4")),
    "h264.ts": Good(_copy("h264.mp4")),
    "h264.mov": Good(_copy("h264.mp4")),
    "fragmented.mp4": Good(_copy("h264.mp4", "-movflags", "frag_keyframe+empty_moov")),
    "sound.mp4": Good(_with_sound),
    "cover_art.mp4": Good(_cover_art),
    "title_in_latin1.mkv": Good(_copy("h264.mp4", "-metadata", "title=F\udce4hre")),
    "all_intra.mp4": Good(_encoded("-c:v", "libx264", "-g", 1, "-preset", "ultrafast", "-pix_fmt", "yuv420p")),
    "open_group.mp4": Good(_encoded(*_x264("open-gop=1", "bframes=3"))),
    "open_group.mkv": Good(_copy("open_group.mp4")),
    "intra_refresh.mp4": Good(_encoded(*_x264("intra-refresh=1", "bframes=0"))),
    "edit_list.mp4": Good(_copy("h264.mp4", before=("-ss", 19 / FPS)), first=19, frames=FRAMES - 19),
    "edit_list_open_group.mp4": Good(_copy("open_group.mp4", before=("-ss", 19 / FPS)), first=19, frames=FRAMES - 19),
    "edit_list_hevc.mp4": Good(_copy("hevc_open_group.mp4", before=("-ss", 19 / FPS)), first=19, frames=FRAMES - 19),
    "variable_rate.mp4": Good(_encoded("-vf", _UNEVEN, "-fps_mode", "passthrough", *_x264("bframes=3"))),
    "variable_rate.mkv": Good(_copy("variable_rate.mp4")),
    "hevc.mp4": Good(_encoded(*_x265("open-gop=0", "bframes=3"), "-tag:v", "hvc1")),
    "hevc_open_group.mp4": Good(_encoded(*_x265("open-gop=1", "bframes=4"))),
    "hevc_open_group.mkv": Good(_copy("hevc_open_group.mp4")),
    "hevc_10bit.mp4": Good(_encoded(*_x265(pix_fmt="yuv420p10le"))),
    "hevc.ts": Good(_copy("hevc.mp4")),
    "one_group.ts": Good(
        _encoded("-c:v", "libx264", "-preset", "veryfast", "-g", 250, "-bf", 3, frames=200), frames=200
    ),
    "vp9.webm": Good(_encoded(*_VP9)),
    "vp9.mp4": Good(_copy("vp9.webm")),
    "vp9_hidden_frames.webm": Good(_encoded(*_TWO_PASS_LIKE, "-lag-in-frames", 12, "-b:v", "300k")),
    "vp8_hidden_frames.webm": Good(
        _encoded("-c:v", "libvpx", "-cpu-used", 8, "-g", 12, "-auto-alt-ref", 1, "-lag-in-frames", 12, "-b:v", "400k")
    ),
    "av1.mp4": Good(_encoded(*_AV1, frames=24), frames=24),
    "av1.webm": Good(_copy("av1.mp4"), frames=24),
    "mpeg4.avi": Good(_encoded("-c:v", "mpeg4", "-q:v", 3, "-g", 12, "-bf", 2)),
    "mpeg4.mp4": Good(_encoded("-c:v", "mpeg4", "-q:v", 3, "-g", 12, "-bf", 2)),
    "mpeg2.ts": Good(_encoded("-c:v", "mpeg2video", "-q:v", 3, "-g", 12, "-bf", 2)),
    "mjpeg.mov": Good(_encoded("-c:v", "mjpeg", "-q:v", 3, "-pix_fmt", "yuvj420p", frames=12), frames=12),
    "rotated_90.mp4": Good(_rotated(90)),
    "rotated_180.mp4": Good(_rotated(180)),
    "rotated_270.mp4": Good(_rotated(270)),
    "mirrored.mp4": Good(_mirrored),
    # pixels twice as wide as high, as those of discs and anamorphic films; shown at 192x128
    "wide_pixels.mp4": Good(_encoded(*_x264("bframes=3"), "-vf", "setsar=2", width=96)),
    "odd.webm": Good(_encoded(*_VP9, width=191, height=127), width=191, height=127),
    "odd_444.mp4": Good(
        _encoded("-c:v", "libx264", "-g", 12, "-pix_fmt", "yuv444p", width=191, height=127), width=191, height=127
    ),
    "one_frame.mp4": Good(_encoded(*_x264(), frames=1), frames=1),
    "two_frames.mkv": Good(_encoded(*_x264("bframes=3"), frames=2), frames=2),
    "4k.mp4": Good(
        _encoded("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", frames=3, width=3840, height=2160),
        frames=3,
        width=3840,
        height=2160,
    ),
    # a recording that starts in the middle of a group: the frames before its first key frame do not exist
    "starts_late.ts": Good(_cut("long_groups.ts", skip=0.3, align=188), first=24, frames=FRAMES - 24),
}
_PARTS: dict[str, Callable[[Corpus, Path], None]] = {
    "long_groups.ts": _encoded("-c:v", "libx264", "-preset", "ultrafast", "-g", 24, "-pix_fmt", "yuv420p"),
    "index_last.mp4": _copy("h264.mp4"),
}


_PASSED = ("-fps_mode", "passthrough")
_SMALL = {"width": 96, "height": 64}


def _timed(seconds: str, *options: object, frames: int) -> Callable[[Corpus, Path], None]:
    """Frame N is shown at `seconds`, an expression of FFmpeg; its unit is 1/90000 s."""
    stamps = ("-vf", f"setpts='({seconds})/TB'", *_PASSED, "-enc_time_base", "1/90000")
    return _encoded(*stamps, *(options or _x264("bframes=3")), frames=frames, **_SMALL)


def _after_sound(corpus: Corpus, path: Path) -> None:
    sound, pictures = ("-f", "lavfi", "-i", "sine=duration=6"), ("-itsoffset", 3.5, "-i", corpus.path("h264.mp4"))
    ffmpeg(*sound, *pictures, "-map", "1:v", "-map", "0:a", "-c:v", "copy", "-c:a", "aac", path)


def _again(corpus: Corpus, path: Path) -> None:
    """Every eighth time stamp is that of the frame before it."""
    with av.open(str(corpus.path("steady.mp4"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            shift = packet.duration if number % 8 == 5 else 0
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            target.mux(packet)


def _thumbnail(first_is: str, film_is: str) -> Callable[[Corpus, Path], None]:
    """A picture of its own track, before the film, each with a disposition."""

    def make(corpus: Corpus, path: Path) -> None:
        picture = path.with_suffix(".picture.mp4")
        ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64:rate=1", "-frames:v", 1, "-c:v", "libx264", picture)
        inputs = ("-i", picture, "-i", corpus.path("h264.mp4"), "-map", "0", "-map", "1", "-c", "copy")
        ffmpeg(*inputs, "-disposition:v:0", first_is, "-disposition:v:1", film_is, path)

    return make


# files whose frames are not shown at n / rate, or that have several video streams
ODD: dict[str, Callable[[Corpus, Path], None]] = {
    "steady.mp4": _encoded(*_x264("bframes=0"), **_SMALL),
    "two_rates.mp4": _timed("if(lt(N,120),N/30,4+(N-120)*0.4)", frames=160),
    "two_rates.mkv": _copy("two_rates.mp4"),
    "two_rates.ts": _copy("two_rates.mp4"),
    "after_sound.mp4": _after_sound,
    "after_sound.mkv": _after_sound,
    "after_sound.ts": _after_sound,
    # calls that stand still for three seconds, and for less than one
    "lost.mp4": _timed("(N+90*gt(N,20))/30", *_x264("bframes=0"), frames=48),
    "lost.avi": _encoded("-vf", "select='not(between(n,9,30))'", *_PASSED, "-c:v", "mpeg4", "-q:v", 3, **_SMALL),
    "slides.mp4": _timed("N*10.02-0.02*gt(N,1)", frames=4),
    "same_stamps.mkv": _again,
    "days.mkv": _timed("N/30+200000*gt(N,0)", frames=12),
    "thumbnail_first.mp4": _thumbnail("0", "default"),
    "thumbnail_first.mkv": _thumbnail("0", "default"),
    "both_default.mp4": _thumbnail("default", "default"),
    "thumbnail_marked.mp4": _thumbnail("default", "0"),
}


def shown_at(path: Path, stream: str = "v:0") -> list[float]:
    """Seconds at which FFmpeg's own command shows the frames of a file."""
    streams = ("-map", f"0:{stream}", "-map", "0:a?")  # without the sound its clock would start with the pictures
    show = ("-fps_mode", "passthrough", "-vf", "showinfo", "-f", "null", "-")
    command = [FFMPEG, "-hide_banner", "-nostats", "-i", str(path), *streams, *show]
    printed = subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stderr
    return [float(seconds) for seconds in re.findall(r"showinfo.* pts_time:\s*([\d.]+)", printed)]


def _audio_only(corpus: Corpus, path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", "-c:a", "aac", path)


def _hls(corpus: Corpus, path: Path) -> None:
    lines = ("#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:1.6,", f"file://{corpus.path('h264.ts')}", "#EXT-X-ENDLIST")
    path.write_text("\n".join(lines) + "\n")


def _ffconcat(corpus: Corpus, path: Path) -> None:
    corpus.path("h264.mp4")
    path.write_text("ffconcat version 1.0\nfile h264.mp4\n")


def _zeroed(corpus: Corpus, path: Path) -> None:
    data = bytearray(corpus.path("h264.mp4").read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    path.write_bytes(data)


def _image(corpus: Corpus, path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64", "-frames:v", 1, "-f", "image2", "-c:v", "mjpeg", path)


def _other_container(corpus: Corpus, path: Path) -> None:
    encode(path, "-c:v", "flv1", "-f", "flv", frames=4)


# name -> how it is made, and the kind of error that it must give
BAD: dict[str, tuple[Callable[[Corpus, Path], None], str]] = {
    "audio_only.mp4": (_audio_only, "no_video_stream"),
    "no_index.mp4": (_cut("index_last.mp4", keep=0.6), "truncated"),
    "cut_off.mp4": (_cut("h264.mp4", keep=0.6), "truncated"),
    "cut_off.mkv": (_cut("h264.mkv", keep=0.6), "truncated"),
    "cut_off.webm": (_cut("vp9.webm", keep=0.6), "truncated"),
    "cut_off.avi": (_cut("mpeg4.avi", keep=0.6), "truncated"),
    "only_header.mp4": (_cut("h264.mp4", keep=0.005), "truncated"),
    "zero_bytes.mp4": (lambda corpus, path: path.write_bytes(b"") and None, "empty"),
    "all_zero.mp4": (lambda corpus, path: path.write_bytes(bytes(9999)) and None, "not_video"),
    "playlist.mp4": (_hls, "playlist"),
    "concat.mp4": (_ffconcat, "playlist"),
    "random.mp4": (lambda corpus, path: path.write_bytes(random.Random(7).randbytes(20_000)) and None, "not_video"),
    "text.mp4": (lambda corpus, path: path.write_text("404 Not Found\n") and None, "not_video"),
    "page.mp4": (lambda corpus, path: path.write_text("<!DOCTYPE html><html></html>\n") and None, "not_video"),
    "image.mp4": (_image, "not_video"),
    "flash.mp4": (_other_container, "unsupported"),
    "zeroed.mp4": (_zeroed, "corrupt"),
    "folder.mp4": (lambda corpus, path: path.mkdir(), "not_a_file"),
    "missing.mp4": (lambda corpus, path: None, "missing"),
}


class Corpus:
    """Makes each video at its first use, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: set[str] = set()

    def path(self, name: str) -> Path:
        """The file of this name."""
        path = self.folder / name
        if name not in self._made:
            make = GOOD[name].make if name in GOOD else BAD[name][0] if name in BAD else (_PARTS | ODD)[name]
            make(self, path)
            self._made.add(name)
        return path
