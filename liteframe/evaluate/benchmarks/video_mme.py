"""Video-MME: 900 videos, three questions each, with and without subtitles (arXiv 2405.21075)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Metric, Question, Result, share_of
from liteframe.evaluate.benchmarks.records import (
    answer_letter,
    find_file,
    find_files,
    find_video,
    options_field,
    rows_of,
    text_field,
)
from liteframe.evaluate.letters import first_letter

INSTRUCTION = "Choose the best option for this question about the video. Reply with nothing but its letter."
ENDING = "The letter of the best option is:"
# Of the script that the benchmark's page links; where it lost a comma, two of them never match, as there.
LEAD_INS = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)


class VideoMME(Benchmark):
    """`lmms-lab/Video-MME` as downloaded, its zip files unpacked."""

    name = "video-mme"
    title = "Video-MME"
    layout = "videomme/test-*.parquet, data/{videoID}.mp4 and, for --subtitles, subtitle/{videoID}.srt"
    prompt = f"{INSTRUCTION}\n{{question}}\n{{options}}\n{ENDING}"
    subtitle_prompt = f"Subtitles of the frames shown:\n{{subtitles}}\n{prompt}"

    @override
    def load(self, source: Path) -> Dataset:
        files = find_files(source, ("videomme/test-*.parquet", "test-*.parquet", "*.parquet"), self.layout)
        return Dataset(tuple(_question(source, w, row) for path in files for w, row in rows_of(path)), tuple(files))

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """The authors' way to find the letter."""
        return {
            "authors": Metric(
                "the first capital A-D after common lead-ins (the script that the authors link; older copies of it "
                "leave replies without a letter out of the count)",
                share_of(results, lambda q, reply: first_letter(reply, q.letters, LEAD_INS) == q.answer),
            )
        }


def _question(folder: Path, where: str, row: dict[str, object]) -> Question:
    options = options_field(row, where, "options", bare=True)
    video = text_field(row, where, "videoID")
    return Question(
        id=text_field(row, where, "question_id"),
        video=find_video(folder, ("data", "video", "videos", "."), video, where),
        text=text_field(row, where, "question"),
        options=options,
        letters="ABCDEFGH"[: len(options)],
        answer=answer_letter(text_field(row, where, "answer"), options, where, kind="letter"),
        groups={key: text_field(row, where, key) for key in ("duration", "domain", "sub_category", "task_type")},
        subtitles=find_file(folder, ("subtitle", "subtitles"), [f"{video}.srt"], where),
    )
