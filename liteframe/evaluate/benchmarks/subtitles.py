"""Subtitles: SubRip files (Video-MME) and JSON lists (LongVideoBench), and the lines that sampled frames fall on."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liteframe.texts import parse_json

_TIME = r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})"
_RANGE = re.compile(rf"^\s*{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True)
class Line:
    """Words shown from `start` to `end` (seconds)."""

    start: float
    end: float
    text: str


def read_subtitles(path: Path, shift: float = 0.0, duration: float | None = None) -> list[Line]:
    """Lines of a .srt or .json file in order, without markup; empty ones left out.

    Args:
        path: the file.
        shift: seconds to take off all times.
        duration: when the video ends, in seconds, and a JSON line that names no end.

    Raises:
        ValueError: the file is not what its suffix says; names file and line or record.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    lines = _from_json(path, text, duration) if path.suffix == ".json" else _from_srt(path, text)
    return [Line(line.start - shift, line.end - shift, line.text) for line in lines if line.text]


def shown_lines(lines: Sequence[Line], times: Sequence[float]) -> list[str]:
    """Texts of the lines on which one of the frames falls, each once; `times` are the frames' seconds.

    A line covers start <= t < end.
    """
    return [line.text for line in lines if any(line.start <= t < line.end for t in times)]


def shown_lines_widened(lines: Sequence[Line], times: Sequence[float]) -> list[str]:
    """LongVideoBench's rule: a frame lies strictly inside, after widening lines under 1 s to 1 s about their middle."""
    shown = []
    for line in lines:
        middle, short = (line.start + line.end) / 2, line.end - line.start < 1
        start, end = (middle - 0.5, middle + 0.5) if short else (line.start, line.end)
        if any(start < t < end for t in times):
            shown.append(line.text)
    return shown


def _from_srt(path: Path, text: str) -> list[Line]:
    lines: list[Line] = []
    if not text.strip():
        return lines
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        rows = block.split("\n")
        at = next((i for i, row in enumerate(rows[:2]) if _RANGE.match(row)), None)
        if at is None:
            # Words with an empty line in them: the rest of the line before.
            if not lines:
                raise ValueError(f"{path}: no time line 'h:mm:ss,mmm --> h:mm:ss,mmm' at its start; not a SubRip file")
            lines[-1] = Line(lines[-1].start, lines[-1].end, f"{lines[-1].text} {_plain(rows)}".strip())
            continue
        match = _RANGE.match(rows[at])
        assert match is not None
        lines.append(Line(_seconds(match.groups()[:4]), _seconds(match.groups()[4:]), _plain(rows[at + 1 :])))
    return lines


def _from_json(path: Path, text: str, duration: float | None) -> list[Line]:
    items = parse_json(text.encode(), str(path), "download it again", lines=True)
    if not isinstance(items, list):
        raise ValueError(f"{path}: holds {type(items).__name__}, not a list of subtitle lines")
    lines = []
    for number, item in enumerate(items, 1):
        try:
            lines.append(_json_line(item, duration))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: record {number}: no 'timestamp' [s, s] and 'text' nor 'start', 'end', 'line': {item!r}"
            ) from error
    return lines


def _json_line(item: Any, duration: float | None) -> Line:
    if "timestamp" in item:
        start, end = item["timestamp"]
        last = end if isinstance(end, int | float) else duration
        return Line(float(start), float("inf") if last is None else float(last), _plain([item["text"]]))
    return Line(_clock(item["start"]), _clock(item["end"]), _plain([item["line"]]))


def _clock(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _plain(rows: Sequence[str]) -> str:
    return " ".join(html.unescape(_TAG.sub("", " ".join(rows))).split())
