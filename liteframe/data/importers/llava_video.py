"""LLaVA-Video-178K (arXiv 2410.02713): captions, open and multiple-choice questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from liteframe.data.importers.base import (
    Adapter,
    License,
    Problem,
    Record,
    Source,
    Turns,
    layout_error,
    locate,
    read_list,
)

ANNOTATIONS = "*_processed.json"  # 0_30_s_academic_v0_1_cap_processed.json, ..._oe_v0_1_qa_processed.json, ...
THEIR_PLACEHOLDER, OURS = "<image>", "<video>"


class LLaVAVideo(Adapter):
    """Records `{id, conversations, data_source, video}` in lists, several of them about one video."""

    name = "llava-video-178k"
    title = "LLaVA-Video-178K"
    published = "178,510 captions, 960,792 open and 196,198 multiple-choice questions"
    license = License(
        "Apache-2.0 on the card, but for academic research and education only",
        (
            "no other use than academic research and education, whatever Apache-2.0 would allow",
            "the texts were written by GPT-4o: OpenAI's terms of use apply as well",
            "the videos keep the terms of their sources (YouTube, ActivityNet, Charades, NExT-QA, PerceptionTest, ...)",
        ),
        "https://huggingface.co/datasets/lmms-lab/LLaVA-Video-178K",
    )

    def records(self, source: Source) -> Iterator[Record | Problem]:
        """Lists in the subsets (or the folder itself); videos start at the list's own folder, or at the set's."""
        files = sorted(source.folder.glob(ANNOTATIONS)) + sorted(source.folder.glob(f"*/{ANNOTATIONS}"))
        if not files:
            raise layout_error(
                source.folder,
                f"subsets such as 0_30_s_academic_v0_1/ with {ANNOTATIONS} in them",
                "download the subsets and unpack each in its own folder: tar -xzf *_videos_N.tar.gz",
            )
        for path in files:
            subset = path.parent.relative_to(source.folder)
            for where, row in read_list(path):
                yield self._record(source.folder, subset, where, row)

    def _record(self, folder: Path, subset: Path, where: str, row: Any) -> Record | Problem:
        turns = row.get("conversations") if isinstance(row, dict) else None
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            named = str(row.get("video", "")) if isinstance(row, dict) else ""
            return Problem(named, "record", "holds no list of conversations", "mend or remove the record", where)
        unpack = f"unpack {subset / '*_videos_N.tar.gz'} in {folder / subset} (tar -xzf)"
        video = locate(folder, tuple(dict.fromkeys((str(subset), "."))), row.get("video"), where, unpack)
        if isinstance(video, Problem):
            return video
        facts = {"data_source": row["data_source"]} if isinstance(row.get("data_source"), str) else {}
        return Record(video, where, facts, (_with_our_placeholder(turns),))


def _with_our_placeholder(turns: list[dict[str, Any]]) -> Turns:
    """Their `<image>` in a question stands for the whole video."""
    return [
        {**turn, "value": turn["value"].replace(THEIR_PLACEHOLDER, OURS)}
        if turn.get("from") == "human" and isinstance(turn.get("value"), str)
        else turn
        for turn in turns
    ]
