"""NTU RGB+D 60 and 120 (arXiv 1604.02808, 1905.04757): actions of people, all facts in the file name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from liteframe.data.importers.base import Adapter, License, Problem, Record, Source, layout_error, locate

_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})_rgb\.avi")
_KEYS = ("setup", "camera", "person", "replication", "action")
# people of the training part, section 3.2.1 of 1905.04757; those up to 40 are the training part of the 60 classes
_TRAIN_PEOPLE = frozenset(
    {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56}
    | {57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103}
)
_TRAIN_CAMERAS = frozenset({2, 3})
_RULES = {
    "cross-subject": lambda clip: clip["person"] in _TRAIN_PEOPLE,
    "cross-view": lambda clip: clip["camera"] in _TRAIN_CAMERAS,
    "cross-setup": lambda clip: clip["setup"] % 2 == 0,
}


class NtuRgbd(Adapter):
    """AVI files of 1920x1080; no text."""

    name = "ntu-rgbd"
    title = "NTU RGB+D"
    published = "56,880 clips (60 classes), 114,480 (120 classes)"
    license = License(
        "research-only agreement of the ROSE Lab, without redistribution",
        (
            "each user signs the agreement; academic research only",
            "no redistribution of the videos or of modified copies; a target cache that holds frames holds such copies",
            "clips whose skeletons are missing are used: their pictures are whole",
        ),
        "https://rose1.ntu.edu.sg/dataset/actionRecognition/",
    )
    has_text = False
    splits = ("all", *(f"{rule}-{part}" for rule in _RULES for part in ("train", "test")))

    def records(self, source: Source) -> Iterator[Record | Problem]:
        """All `S...A..._rgb.avi` below the folder that belong to the split."""
        folder = source.folder
        files = sorted(path for path in folder.rglob("*.avi") if not path.name.endswith("_ir.avi"))
        if not files:
            raise layout_error(
                folder,
                "nturgb+d_rgb/S001C001P001R001A001_rgb.avi and so on",
                "unpack the RGB archives here: unzip nturgbd_rgb_s001.zip, ... (s001-s017, and s018-s032 for 120)",
            )
        rule, _, part = (source.split or "all").rpartition("-")
        seen: dict[str, str] = {}
        for path in files:
            name = str(path.relative_to(folder))
            parsed = _NAME.fullmatch(path.name)
            if parsed is None:
                reason = "is not named like S001C001P001R001A001_rgb.avi"
                yield Problem(name, "name", reason, "give it its published name, or move it away", str(path))
                continue
            clip = dict(zip(_KEYS, map(int, parsed.groups()), strict=True))
            if rule and _RULES[rule](clip) != (part == "train"):
                continue
            if path.name in seen:
                reason = f"is the clip {seen[path.name]} again"
                yield Problem(name, "duplicate", reason, "keep one of the two", str(path))
                continue
            seen[path.name] = name
            video = locate(folder, ("",), name, str(path), "")
            yield video if isinstance(video, Problem) else Record(video, str(path), dict(clip))
