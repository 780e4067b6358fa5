"""Frames in their own aspect ratio: which size each video's clips have, and what that means for the batches.

Clips of a step share a size. Sizes follow from the shapes that the list of videos tells, or the files themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from liteframe.data.manifest import VideoEntry
from liteframe.data.preprocess import FrameFormat
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.training.report import tell

Shape = tuple[int, int]


def frame_shapes(entries: list[VideoEntry], decoder: DecodeProcess) -> list[Shape | None]:
    """(height, width) of each video's frames as they are shown; None of one that cannot be looked at.

    Args:
        entries: those that do not tell it are looked through, and completed.
        decoder: looks at the files.
    """
    if unknown := [i for i, entry in enumerate(entries) if entry.height is None or entry.width is None]:
        tell(
            f"looking through {len(unknown)} videos for the shape of their frames, which batches are made by; a list "
            "from `liteframe scan` tells it"
        )
        for i in unknown:
            try:
                entries[i] = entries[i].with_facts(decoder.probe(entries[i].video))
            except VideoError:
                continue  # found again, counted and listed when its clip is wanted
    return [None if entry.height is None or entry.width is None else (entry.height, entry.width) for entry in entries]


def clip_sizes(shapes: Sequence[Shape | None], frame_format: FrameFormat) -> list[Shape]:
    """(height, width) in pixels of each video's clips; one that will fail when it is read is put where most are."""
    sizes: list[Shape | None] = []
    for shape in shapes:
        try:
            sizes.append(None if shape is None else frame_format.size_of(*shape))
        except ValueError:  # too elongated: so says its clip
            sizes.append(None)
    common = Counter(size for size in sizes if size is not None).most_common(1)
    return [size or (common[0][0] if common else frame_format.size) for size in sizes]


def describe_sizes(sizes: Sequence[Shape], step: int) -> list[str]:
    """How many videos have which size, and which sizes are too rare to fill a step of so many clips."""
    counts = Counter(sizes).most_common()
    listed = ", ".join(f"{height}x{width} ({videos})" for (height, width), videos in counts)
    lines = [f"frames keep their aspect ratio; sizes of clips, height x width, and videos that have them: {listed}"]
    if rare := [(size, videos) for size, videos in counts if videos < step]:
        named = ", ".join(f"{height}x{width} ({videos})" for (height, width), videos in rare)
        lines.append(
            f"fewer videos than the {step} clips of a step have {named}: a step of such a size takes each of its "
            "videos several times, at other moments, and comes once in several epochs, so that all videos are seen "
            "equally often"
        )
    return lines
