"""Is a cache what was built, and would the live network give the same? All digests, a random sample, and a summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.training.cache.build import readable, whole_shards
from liteframe.training.cache.reader import INDEX, SETTINGS, Cache
from liteframe.training.cache.settings import Settings, all_shards

Advance = Callable[[str, int, int], None]
Compare = Callable[[str, int, int], "ClipCheck | None"]


def describe_cache(folder: Path, settings_class: type[Settings]) -> str:
    """Size, bytes a clip, coverage, failures and settings."""
    settings = settings_class.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    keys, shards = all_shards(settings), whole_shards(folder, settings)
    size = sum(info.bytes for info in shards.values())
    clips, failed = (sum(getattr(info, name) for info in shards.values()) for name in ("clips", "failed"))
    good = clips - failed
    state = "finished" if (folder / INDEX).is_file() else "not finished; the command that began it goes on"
    lines = [
        f"{folder}: {settings.kind}, {state}",
        f"shards    {len(shards)} of {len(keys)}, {readable(size)}",
        f"clips     {clips} of {sum(key.count for key in keys)}, {failed} of them could not be read",
        f"bytes     {readable(size / good) if good else '0 bytes'} a clip{settings.bytes_of_a_frame(size, good)}",
    ]
    views: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    for split, view, count in settings.parts:
        whole = sum(key.count for key in shards if (key.split, key.view) == (split, view))
        views[split].append((count, whole == count))
    for split, parts in views.items():
        lines.append(f"{split:<9} {sum(done for _, done in parts)} of {len(parts)} views of {parts[0][0]} videos")
    width = max(len(name) for name in asdict(settings))
    lines += ["settings"] + [f"  {name:<{width}}  {value}" for name, value in asdict(settings).items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class ClipCheck:
    """A stored clip beside the live network's.

    Attributes:
        place: split, view and index, for the message.
        problem: what is wrong, or None.
        error: root mean square of the difference, in standard deviations of the channel; that of the median channel,
            because a channel that is nearly constant has no scale to compare with. Another clip differs by about 1.
        psnr: of the stored frames in dB; None where there are none.
    """

    place: str
    problem: str | None = None
    error: float = 0.0
    psnr: float | None = None


def check_files(cache: Cache[Any], advance: Advance) -> list[str]:
    """Read every clip and compare its digest; returns what is wrong, one line a file."""
    problems, keys = [], all_shards(cache.settings)
    for number, key in enumerate(keys):
        try:
            for view, index in key.clips:
                cache.stored(key.split, view, index)
        except ValueError as error:
            problems.append(str(error))
        advance("files", number + 1, len(keys))
    try:
        cache.check_small_files()
    except ValueError as error:
        problems.append(str(error))
    return problems


def check_clips(cache: Cache[Any], compare: Compare, count: int, seed: int, advance: Advance) -> list[ClipCheck]:
    """Compare random clips with what the live network makes of them.

    Args:
        cache: the cache.
        compare: split, view and index of a clip -> what came out; None of a clip that failed when the cache was built,
            for which another is drawn.
        count: clips to compare.
        seed: of the draw.
        advance: told of each.
    """
    clips = [(key.split, view, index) for key in all_shards(cache.settings) for view, index in key.clips]
    checks: list[ClipCheck] = []
    for number in np.random.default_rng(seed).permutation(len(clips)):
        if (check := compare(*clips[number])) is not None:
            checks.append(check)
        advance("sample", len(checks), min(count, len(clips)))
        if len(checks) >= count:
            break
    return checks
