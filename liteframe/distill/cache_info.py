"""What a cache holds, in words; also of one that is not finished."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from liteframe.data.cache.layout import INDEX, SETTINGS, all_parts
from liteframe.data.cache.settings import CacheSettings
from liteframe.distill.cache_estimate import readable
from liteframe.distill.cache_folder import finished_entry


def describe_cache(folder: Path) -> str:
    """Size, bytes a frame, coverage, failures and settings.

    Raises:
        ValueError: the folder holds no cache.
    """
    if not (folder / SETTINGS).is_file():
        raise ValueError(f"{folder} is not a target cache; make one with `liteframe cache build`")
    settings = CacheSettings.from_json((folder / SETTINGS).read_text(encoding="utf-8"))
    parts = all_parts(settings)
    found = {part: entry for part in parts if (entry := finished_entry(folder, part)) is not None}
    size = sum(entry.bytes for entry in found.values())
    clips, failed = (sum(getattr(entry, name) for entry in found.values()) for name in ("clips", "failed"))
    stored = (clips - failed) * settings.clip_frames
    state = "finished" if (folder / INDEX).is_file() else "not finished; the command that began it goes on"
    lines = [
        f"{folder}: {state}",
        f"shards    {len(found)} of {len(parts)}, {readable(size)}",
        f"frames    {stored}, {readable(size / stored) if stored else '0 bytes'} each",
        f"clips     {clips} of {sum(part.count for part in parts)}, {failed} of them could not be read",
    ]
    for name, views in (("train", settings.views), ("val", 1)):
        whole = [sum(part.count for part in found if (part.part, part.view) == (name, view)) for view in range(views)]
        videos = settings.train_videos if name == "train" else settings.val_videos
        lines.append(f"{name:<9} {sum(count == videos for count in whole)} of {views} views of {videos} videos")
    width = max(len(name) for name in asdict(settings))
    lines += ["settings"] + [f"  {name:<{width}}  {value}" for name, value in asdict(settings).items()]
    return "\n".join(lines)
