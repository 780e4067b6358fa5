"""HLVid: five-minute 4K clips with questions about small details (`bfshi/HLVid`)."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Question
from liteframe.evaluate.benchmarks.records import find_files, find_video, listed_options, rows_of, text_field


class HLVid(Benchmark):
    """The parquet file and the unpacked clips.

    Its question column holds stem, options and the request to answer with the letter, so the prompt is the question.
    """

    name = "hlvid"
    title = "HLVid"
    layout = "data/test-*.parquet and videos/ with the clips"
    prompt = "{question}"

    @override
    def load(self, source: Path) -> Dataset:
        files = find_files(source, ("data/test-*.parquet", "test-*.parquet", "*.parquet"), self.layout)
        return Dataset(tuple(_question(source, w, row) for path in files for w, row in rows_of(path)), tuple(files))


def _question(folder: Path, where: str, row: dict[str, object]) -> Question:
    """The clip's column has gone by several names in other people's code."""
    video = text_field(row, where, "video_path", "video", "video_name", "video_file", "file_name", "clip")
    text = text_field(row, where, "question", "prompt")
    answer = text_field(row, where, "answer")
    return Question(
        id=text_field(row, where, "question_id", "id"),
        video=find_video(folder, ("videos", "video", "data/videos", "data", "."), video, where),
        text=text,
        letters=listed_options(text, answer, where),
        answer=answer,
        groups={"category": text_field(row, where, "category")} if row.get("category") is not None else {},
    )
