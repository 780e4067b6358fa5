"""benchmarks/bad_files.py at a small size: every broken file is listed as what it is, and training completes."""

import json
import sys

import pytest
from worlds import ROOT

KINDS = {
    "cut off": "truncated", "without index": "truncated", "with a hole": "corrupt", "empty": "empty",
    "an error page": "not_video", "sound only": "no_video_stream", "a playlist": "playlist", "a folder": "not_a_file",
    "a link to itself": "unreadable", "missing": "missing",
}  # fmt: skip


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import bad_files

        folder = tmp_path_factory.mktemp("bad_files")
        made = bad_files.train(folder / "work", files=40, epochs=2, workers=2, part=0.25)
        patch.setattr(bad_files, "train", lambda *_, **__: made)
        patch.setattr(sys, "argv", ["bad_files.py", "-o", str(folder / "bad_files")])
        bad_files.main()
    return folder, made


def test_training_completes_and_lists_each_broken_file(record):
    made = record[1]
    assert made["steps"] == 2 * made["steps_per_epoch"] == 6
    assert made["broken"] == made["listed"] == 10
    assert made["not_listed"] == []
    assert {way: found["kinds"] for way, found in made["ways"].items()} == {way: {KINDS[way]: 1} for way in KINDS}
    # 16 clips for the statistics and six batches of 16.
    assert made["data"]["clips_read"] + made["data"]["clips_failed"] == 7 * 16


def test_memory_of_every_process_is_sampled(record):
    folder, made = record
    assert {row["role"]: row["processes"] for row in made["memory"]} == {"training": 1, "workers": 2, "decoders": 2}
    steps = {row["step"] for row in made["samples"]}
    assert steps == set(range(1, 7))
    for row in made["samples"]:
        assert 1 < row["uss"] < row["rss"] < 10_000
    assert json.loads((folder / "bad_files.json").read_text())["memory"] == made["memory"]
    assert "10 of them broken in 10 ways" in (folder / "bad_files.md").read_text()
    assert (folder / "bad_files.png").stat().st_size > 10_000
