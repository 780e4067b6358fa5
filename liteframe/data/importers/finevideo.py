"""FineVideo: parquet files whose rows hold an mp4 and a description; the mp4 are written out, one file a row."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liteframe.data.importers.base import Adapter, License, Problem, Record, Source, Turns, layout_error
from liteframe.files import write_atomically

QUESTION = "Describe this video in detail."
_REMEDY = "fetch the file again"
_SHARD_FOLDER = re.compile(r".+-[0-9a-f]{12}")


class FineVideo(Adapter):
    """Columns `mp4` (bytes) and `json` (description, questions and answers, title, channel).

    Row n of a parquet file becomes `<file>-<digest of its footer>/<n>.mp4`: names never come from the data, and a
    newer version of the data set never takes an older one's videos for its own.
    """

    name = "finevideo"
    title = "FineVideo"
    published = "43 K videos, 3,400 hours, about 600 GB"
    license = License(
        "YouTube CC-BY, under FineVideo's terms of use",
        (
            "name the authors: title and channel are in each row of the manifest",
            "honour removal requests: keep to the latest version, run this again, delete what is reported as stale",
            "pass the terms of use on with the data, and have users agree to them",
        ),
        "https://huggingface.co/datasets/HuggingFaceFV/finevideo",
    )
    writes_videos = True

    def records(self, source: Source) -> Iterator[Record | Problem]:
        """Writes the videos that are not there yet, so that a run that was cut off goes on."""
        files = sorted(source.folder.glob("data/*.parquet")) or sorted(source.folder.glob("*.parquet"))
        if not files:
            raise layout_error(
                source.folder, "data/train-00000-of-01357.parquet and so on", "download the parquet files"
            )
        assert source.videos is not None
        source.videos.mkdir(parents=True, exist_ok=True)
        parquet, opened = _pyarrow(), []
        for path in files:
            shard = _open(parquet, path)
            if isinstance(shard, Problem):
                yield shard
            else:
                opened.append((path, source.videos.resolve() / f"{path.stem}-{_footer_digest(path)}"))
        _require_space(parquet, opened, source.videos)
        for path, target in opened:
            target.mkdir(exist_ok=True)
            yield from _unpack(parquet, path, target)
        if len(opened) == len(files):
            yield from _stale(source.videos, {target.name for _, target in opened})


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError("FineVideo is stored as parquet: pip install 'liteframe[finevideo]' (pyarrow)") from error


def _open(parquet: Any, path: Path) -> Any:
    """The file, read page by page; a `Problem` if it is damaged."""
    try:
        file = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        return _damaged(path, error)
    if not {"mp4", "json"} <= set(file.schema_arrow.names):
        names = ", ".join(file.schema_arrow.names)
        raise ValueError(f"{path}: has columns {names}; expected mp4 and json. Is it another data set's file?")
    return file


def _damaged(path: Path, error: Exception) -> Problem:
    reason = f"cannot be read: {str(error).splitlines()[0][:200]}"
    return Problem(str(path), "damaged", reason, _REMEDY, str(path))


def _footer_digest(path: Path) -> str:
    """Names the content: the footer holds place and size of all columns."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, os.SEEK_END)
        return hashlib.sha256(file.read(length)).hexdigest()[:12]


def _require_space(parquet: Any, opened: list[tuple[Path, Path]], videos: Path) -> None:
    needed = 0
    for path, target in opened:
        metadata = parquet.read_metadata(path)
        for group in range(metadata.num_row_groups):
            columns = [metadata.row_group(group).column(i) for i in range(metadata.num_columns)]
            needed += sum(c.total_uncompressed_size for c in columns if c.path_in_schema == "mp4")
        needed -= sum(file.stat().st_size for file in target.glob("*.mp4"))
    free = shutil.disk_usage(videos).free
    if needed > free:
        raise ValueError(
            f"{videos}: {needed / 1e9:.1f} GB of videos are to be written, {free / 1e9:.1f} GB are free; "
            "give --videos on a larger disk, or link fewer parquet files into another folder"
        )


def _unpack(parquet: Any, path: Path, target: Path) -> Iterator[Record | Problem]:
    """The rows of one file, row group by row group: the texts first, then the videos that are missing."""
    file, first = parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False), 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        names = [target / f"{first + i:06d}.mp4" for i in range(count)]
        first += count
        texts: list[Any] = []
        damage = None
        try:
            texts = file.read_row_group(group, columns=["json"]).column("json").to_pylist()
            _write_missing(file, group, names)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # the disk, not the file: pyarrow's own errors carry no number
            damage = _damaged(path, error)
            yield damage
        for name, text in zip(names, texts, strict=False):
            if damage is None or name.exists():
                yield from _row(name, text, f"{path}: row {int(name.stem)}")


def _write_missing(file: Any, group: int, names: list[Path]) -> None:
    if all(name.exists() for name in names):
        return
    batches = file.iter_batches(batch_size=1, row_groups=[group], columns=["mp4"])
    for name, batch in zip(names, batches, strict=True):
        value = batch.column(0)[0]
        if value.is_valid and len(value.as_buffer()) and not name.exists():
            write_atomically(name, value.as_buffer())


def _row(video: Path, text: Any, where: str) -> Iterator[Record | Problem]:
    if not video.exists():
        yield Problem(str(video), "missing", f"{where} holds no video", "nothing: the data set leaves it empty", where)
        return
    text = text if isinstance(text, dict) else {}
    keys = {"title": "youtube_title", "channel": "youtube_channel", "original": "original_video_filename"}
    facts = {key: text[theirs] for key, theirs in keys.items() if isinstance(text.get(theirs), str)}
    content = text.get("content_metadata") or {}
    conversations: list[Turns] = []
    if content.get("description"):
        conversations.append(_pair(f"<video>\n{QUESTION}", content["description"]))
    asked = [pair for pair in content.get("qAndA") or () if pair.get("question") and pair.get("answer")]
    if asked:
        conversations.append([turn for pair in asked for turn in _pair(pair["question"], pair["answer"])])
    yield Record(str(video), where, facts, tuple(conversations))


def _pair(question: str, answer: str) -> Turns:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _stale(videos: Path, present: set[str]) -> Iterator[Problem]:
    """Videos of parquet files that are no longer there: removal requests reach the user this way."""
    for folder in sorted(videos.iterdir()):
        if folder.is_dir() and _SHARD_FOLDER.fullmatch(folder.name) and folder.name not in present:
            count = sum(1 for _ in folder.glob("*.mp4"))
            reason = f"holds {count} videos of a parquet file that is not in the folder (any more)"
            yield Problem(str(folder), "stale", reason, "delete the folder if you updated the data set", str(folder))
