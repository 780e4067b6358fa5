"""benchmarks/cached_ctd.py at a tiny size: caches as `liteframe cache build` makes them, trained from and compared."""

import json

import pytest
import torch

from benchmarks.cached_ctd import CACHES, LIVE, Setup, main

SETUP = Setup(videos=3, held_out=1, steps=4, warmup=1, batch=2, statistics_clips=2, seeds=(0,), sample=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    output, threads = tmp_path_factory.mktemp("cached_ctd"), torch.get_num_threads()
    main(output, output / "work", SETUP)
    torch.set_num_threads(threads)
    return output


def test_stored_targets_teach_what_the_teacher_teaches(made):
    """Four steps over three videos: the third epoch has begun, and the views are those of the live run."""
    record = json.loads((made / "cached_ctd.json").read_text())
    assert record["setup"]["views"] == 3
    runs = {run["targets"]: run for run in record["runs"]}
    assert list(runs) == [LIVE, *(one.name for one in CACHES)]
    for name, tolerance in (("bf16", 2e-4), ("int8", 1e-3), ("bf16 and JPEG frames", 2e-2)):
        for figure in ("token_cosine", "projected_cosine"):
            assert runs[name][figure] == pytest.approx(runs[LIVE][figure], abs=tolerance), (name, figure)
    assert len({run["token_cosine"] for run in runs.values()}) == 4


def test_bytes_a_frame_and_quality(made):
    caches = json.loads((made / "cached_ctd.json").read_text())["caches"]
    # 4x4 tokens of 128 channels for 4 frames: 512 values a frame, and what tables and scales take.
    assert 1024 < caches["bf16"]["bytes_a_frame"] < 1200
    assert 512 < caches["int8"]["bytes_a_frame"] < 700
    assert caches["bf16 and JPEG frames"]["bytes_a_frame"] > caches["bf16"]["bytes_a_frame"] + 500
    assert min(caches["bf16 and JPEG frames"]["psnr_db"]) > 30
    table = [line for line in (made / "cached_ctd.md").read_text().splitlines() if line.startswith("| ")]
    assert len(table) == 1 + 4
    assert {line.count("|") for line in table} == {10}
