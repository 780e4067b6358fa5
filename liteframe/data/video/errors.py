"""What every reader returns or raises: `VideoInfo` and `VideoError`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from liteframe.data.video.timeline import Timeline

# kind -> what a user can do about it, used when the place that raises knows nothing better.
REMEDIES = {
    "missing": "check the path; relative paths in a manifest start at the manifest's folder",
    "not_a_file": "give the path of a video file",
    "unreadable": "check the permissions of the file",
    "empty": "copy or download the file again",
    "playlist": "download the media itself; playlists are never followed",
    "not_video": "convert it: ffmpeg -i IN -c:v libx264 OUT.mp4",
    "no_video_stream": "remove it from the manifest",
    "truncated": "copy or download the file again",
    "corrupt": "download it again or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4",
    "unsupported": "re-encode it: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4",
    "too_large": "ask for fewer frames or pass a smaller size",
    "index": "run `liteframe scan` again; the manifest does not fit the file",
    "shape": "remove it, cut its frames, or use an encoder that squashes frames (resize 'squash')",
    "deadline": "raise the deadline, or re-encode it: ffmpeg -i IN -c:v libx264 -g 60 OUT.mp4",
    "crash": "remove it from the manifest or re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4",
}


class VideoError(Exception):
    """A video, or a frame of it, that cannot be had exactly as asked.

    Attributes:
        path: the file.
        kind: one of the keys of `REMEDIES`.
        reason: what was found, in words.
        remedy: what to do about it.
    """

    def __init__(self, path: str | PathLike[str], kind: str, reason: str, remedy: str | None = None):
        if kind not in REMEDIES:
            raise ValueError(f"unknown kind of video error {kind!r}; known: {', '.join(REMEDIES)}")
        self.path, self.kind, self.reason = str(path), kind, reason
        self.remedy = remedy or REMEDIES[kind]
        super().__init__(f"{self.path}: {kind}: {reason} ({self.remedy})")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the four fields, so that the error survives a DataLoader worker's queue."""
        return VideoError, (self.path, self.kind, self.reason, self.remedy)

    def to_dict(self) -> dict[str, str]:
        """The four fields, for a JSON report."""
        return {"path": self.path, "kind": self.kind, "reason": self.reason, "remedy": self.remedy}


@dataclass(frozen=True)
class VideoInfo:
    """Facts about the video stream of a file that a player shows.

    Attributes:
        frames: number of frames that a full sequential decode gives.
        fps: mean frame rate over the whole file (frames per second).
        breaks: when the frames are shown, as `Timeline` has it.
        width: pixels as shown: square ones, after rotation.
        height: the same.
        codec: FFmpeg's name, such as "h264".
        container: FFmpeg's demuxer name, such as "mov,mp4,m4a,3gp,3g2,mj2".
        rotation: degrees of the rotation tag, counter-clockwise, already applied to width and height.
        anchors: number of key frames from which decoding may start; 0 means always from the beginning.
        closed_groups: whether all groups of pictures stand alone and no edit list hides a frame.
        video_track: number of the stream among all of the file.
        video_tracks: how many video streams the file has, covers and thumbnails among them.
        broken_stamps: what is wrong with the time stamps and what is taken in their place; None if nothing is.
        square_pixels: whether frames are shown as they are stored, but for rotation; PyAV alone scales others.
    """

    frames: int
    fps: float
    breaks: tuple[tuple[int, float], ...]
    width: int
    height: int
    codec: str
    container: str
    rotation: int = 0
    anchors: int = 0
    closed_groups: bool = False
    video_track: int = 0
    video_tracks: int = 1
    broken_stamps: str | None = None
    square_pixels: bool = True

    def __post_init__(self) -> None:
        """Take the lists that JSON makes of tuples."""
        object.__setattr__(self, "breaks", tuple((frame, seconds) for frame, seconds in self.breaks))

    @property
    def timeline(self) -> Timeline:
        """When each frame is shown."""
        return Timeline(self.frames, self.fps, self.breaks)

    @property
    def duration(self) -> float:
        """Seconds from the first frame's start to the last frame's end."""
        return self.breaks[-1][1] - self.breaks[0][1]

    def to_dict(self) -> dict[str, Any]:
        """All fields, as the decoding child sends them and JSON can hold them."""
        return asdict(self)
