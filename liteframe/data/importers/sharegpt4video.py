"""ShareGPT4Video (arXiv 2406.04325): 40 thousand videos with captions by GPT-4V."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liteframe.data.importers.base import DAMAGED, Adapter, License, Problem, Record, Source, layout_error, locate
from liteframe.texts import read_jsonl

ANNOTATIONS = "sharegpt4video_40k.jsonl"
WHOLE_VIDEO = "-1"  # `idx` of the caption of the whole video; the others are of moments
QUESTION = "Describe this video in detail."


class ShareGPT4Video(Adapter):
    """Records `{video_path, zip_folder, captions: [{idx, content}]}`, one a line."""

    name = "sharegpt4video"
    title = "ShareGPT4Video"
    published = "40 K videos"
    license = License(
        "CC-BY-NC-4.0",
        (
            "name the authors; no commercial use",
            "the captions were written by GPT-4V: OpenAI's terms of use apply as well",
            "the videos keep the terms of their sources (Panda-70M, Pexels, Pixabay, Mixkit, BDD100K, Ego4D)",
        ),
        "https://huggingface.co/datasets/ShareGPT4Video/ShareGPT4Video",
    )

    def records(self, source: Source) -> Iterator[Record | Problem]:
        """Videos at `<source>/<id>.mp4` below the folder, or below its `zip_folder`."""
        path = source.folder / ANNOTATIONS
        if not path.is_file():
            raise layout_error(
                source.folder,
                f"{ANNOTATIONS}, and videos at panda/*.mp4, pexels/*.mp4, ... below the folder or its zip_folder",
                f"download {ANNOTATIONS} and zip_folder/, then: unzip zip_folder/panda/panda_videos_1.zip -d panda",
            )
        for where, row in read_jsonl(path, DAMAGED):
            yield from self._record(source.folder, where, row)

    def _record(self, folder: Path, where: str, row: Any) -> Iterator[Record | Problem]:
        if not isinstance(row, dict):
            yield Problem("", "record", f"is {type(row).__name__}, not an object", "mend or remove the line", where)
            return
        name = row.get("video_path")
        video = locate(folder, ("", "zip_folder"), name, where, _unzip(name, row.get("zip_folder")))
        if isinstance(video, Problem):
            yield video
            return
        caption = _whole_video(row.get("captions"))
        if caption is None:
            yield Record(video, where)
            reason = f"{where}: has no caption of the whole video (idx {WHOLE_VIDEO!r})"
            yield Problem(str(name), "text", reason, "it is used without text", where)
            return
        turns = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": caption}]
        yield Record(video, where, conversations=(turns,))


def _whole_video(captions: Any) -> str | None:
    for caption in captions if isinstance(captions, list) else ():
        if isinstance(caption, dict) and str(caption.get("idx")) == WHOLE_VIDEO:
            content = caption.get("content")
            return content if isinstance(content, str) and content.strip() else None
    return None


def _unzip(name: Any, archive: Any) -> str:
    part = Path(str(name)).parts[0] if name else "panda"
    return f"unzip zip_folder/{part}/{archive or f'{part}_videos_N.zip'} -d {part}"
