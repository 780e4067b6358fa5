"""A page of what a scan found: three frames of each usable video, and of every other file what is wrong with it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment
from PIL import Image

from liteframe.cli.report import STYLE
from liteframe.data.manifest import VideoEntry
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.files import write_atomically

SHOWN = 400  # a page of more is slow to open
_HEIGHT = 96
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ source }}</title>
<style>{{ style|safe }}
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
figure { margin: 0 } figcaption { font-size: .8rem; overflow-wrap: anywhere }
.sheet img { border: 0; width: 32% }</style>
<h1>{{ source }}</h1>
<p>{{ good|length }} usable, {{ bad|length }} not. Frames at a sixth, a half and five sixths.</p>
{% if bad %}<h2 class="bad">Not usable</h2>
<table><tr><th>file</th><th>kind</th><th>reason</th><th>what to do</th></tr>
{% for error in bad %}<tr><td>{{ error.path }}</td><td>{{ error.kind }}</td><td>{{ error.reason }}</td>
<td>{{ error.remedy }}</td></tr>{% endfor %}</table>{% endif %}
<h2>Usable</h2>
<div class="sheet">{% for entry, pictures in shown %}<figure>
{% for picture in pictures %}<img alt="" src="data:image/jpeg;base64,{{ picture }}">{% endfor %}
<figcaption>{{ entry.video }}<br><span class="muted">{{ entry.width }}x{{ entry.height }},
{{ "%.3g"|format(entry.duration) }} s, {{ "%.4g"|format(entry.fps) }} fps, {{ entry.frames }} frames, read by
{{ entry.reader }}</span>
{% if entry.broken_stamps %}<br>{{ entry.broken_stamps }}{% endif %}</figcaption></figure>{% endfor %}</div>
{% if good|length > shown|length %}<p>and {{ good|length - shown|length }} more</p>{% endif %}
</html>
"""


def write_contact_sheet(
    source: str, good: Sequence[VideoEntry], bad: Sequence[VideoError], path: Path, deadline: float
) -> None:
    """Write the page, a file that needs no other.

    Args:
        source: what was scanned.
        good: usable entries, as the scan has completed them; the first 400 are shown.
        bad: what is wrong with the others, all of them.
        path: of the page.
        deadline: seconds that the frames of one video may take.
    """
    with DecodeProcess(deadline) as process:
        shown = [(entry, _pictures(process, entry)) for entry in good[:SHOWN]]
    values = {"source": source, "style": STYLE, "good": good, "bad": bad, "shown": shown}
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE).render(values)
    write_atomically(path, page.encode(errors="replace"))  # a name need not be UTF-8


def _pictures(process: DecodeProcess, entry: VideoEntry) -> list[str]:
    """Three frames as JPEG in base64; none where they take too long, which a usable video seldom does."""
    assert entry.width is not None
    assert entry.height is not None
    size = (_HEIGHT, max(1, round(_HEIGHT * entry.width / entry.height)))
    try:
        timeline = entry.timeline or process.probe(entry.video).timeline
        seconds = timeline.start + (timeline.end - timeline.start) * np.array([1, 3, 5]) / 6
        indices = timeline.on_screen(seconds).tolist()
        frames = process.read(entry.video, indices, reader=entry.reader, size=size)  # [3,h,w,3]
    except VideoError:
        return []
    pictures = []
    for frame in frames:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "jpeg", quality=80)
        pictures.append(base64.b64encode(data.getvalue()).decode())
    return pictures
