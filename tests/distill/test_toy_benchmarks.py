"""benchmarks/qwen_toyworld.py and aspect_ratio.py: tiny runs, and their arithmetic by hand."""

import importlib
import json

import pytest
from worlds import ROOT

from liteframe.toyworld import pretrain


@pytest.fixture
def small(monkeypatch):
    """The two benchmarks, cut down to one seed and few frames."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import aspect_ratio
    import claims_cells
    import qwen_toyworld

    for module in (aspect_ratio, claims_cells, qwen_toyworld):
        monkeypatch.setattr(module, "SEEDS", (0,))
    monkeypatch.setattr(qwen_toyworld, "DENSE_FRAMES", (8,))
    monkeypatch.setattr(qwen_toyworld, "SALIENCIES", {"received": "own", "norm": "norm"})
    monkeypatch.setattr(pretrain, "HELD_OUT", 1)
    monkeypatch.setattr(pretrain, "held_out_accuracy", lambda *_: {})
    return qwen_toyworld, aspect_ratio


def test_the_qwen_benchmark_from_teacher_to_aligned_student(small, tmp_path):
    bench, _ = small
    setup = bench.Setup(
        scenes=1, steps=2, batch=2, statistics_clips=2, test_scenes=1, videos=2, vision_steps=2, vision_batch=2,
        language_steps=2, restart_steps=2, lma_videos=1, lma_steps=1,
    )  # fmt: skip
    bench.main(tmp_path / "work", tmp_path, setup)
    before = (tmp_path / "qwen_toyworld.json").read_text()
    bench.main(tmp_path / "work", tmp_path, setup)  # nothing is done again
    record = json.loads(before)
    assert json.loads((tmp_path / "qwen_toyworld.json").read_text())["cells"] == record["cells"]
    cells = {(row["cell"]["kind"], row["cell"]["name"]): row for row in record["cells"]}
    kinds = {(kind, name) for kind in ("pooled", "student") for name in ("received", "norm")}
    assert set(cells) == kinds | {("teacher", ""), ("dense", ""), ("aligned", "received")}
    assert all(len(row["right"][frames]) == 5 for row in record["cells"][1:] for frames in row["right"])
    # Two saliencies are two targets: students of the same seed differ.
    assert cells["student", "received"]["cosine"] != cells["student", "norm"]["cosine"]
    table = (tmp_path / "qwen_toyworld.md").read_text()
    assert table.count("\n| student, CTD") == 3
    with pytest.raises(ValueError, match="cells of another setup"):
        bench.main(tmp_path / "work", tmp_path, bench.Setup())


def test_both_modes_of_the_aspect_benchmark(small, tmp_path):
    _, bench = small
    setup = bench.Setup(scenes=1, steps=2, batch=2, statistics_clips=2, test_scenes=1)
    bench.main(tmp_path / "work", tmp_path, setup)
    record = json.loads((tmp_path / "aspect_ratio.json").read_text())
    assert [row["cell"]["name"] for row in record["cells"]] == ["squash", "aspect"] * 2
    assert all({shape: len(right) for shape, right in row["right"].items()} == {"16:9": 5, "9:16": 5}
               for row in record["cells"])  # fmt: skip
    assert (tmp_path / "aspect_ratio.md").read_text().count("in their own aspect ratio |") == 2
    teacher = bench.load_teacher("toyworld")
    sizes = {
        mode: [
            bench.clips_of(0, 1, teacher, 1, bench.student_config(teacher, fields), size).frames.shape[-2:]
            for size in bench.SHAPES.values()
        ]
        for mode, fields in bench.STUDENTS.items()
    }
    assert sizes == {"squash": [(96, 96)] * 2, "aspect": [(64, 128), (128, 64)]}


def test_differences_by_hand(small):
    bench, _ = small
    good, bad = "11110" * 4, "11000" * 4
    # Two of five questions more in each video: no spread between videos, so no error.
    assert bench.difference([good, good], [bad, bad]) == "+40.0 ± 0.0"
    assert bench.difference([good, good, good], [bad]) == "+40.0 ± 0.0"
    # One video in four differs: mean 1/20, deviations of sums by video 3/4 and -1/4, so an error of 1/20.
    assert bench.difference([good, good], ["11100" + good[5:]]) == "+5.0 ± 5.0"
    assert bench.spread([1.0, 3.0], 1) == "2.0 ± 1.4"


@pytest.mark.parametrize("name", ["qwen_toyworld", "aspect_ratio"])
def test_the_committed_table_is_that_of_the_record(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    record = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())
    table = (ROOT / "benchmarks" / f"{name}.md").read_text()
    assert table == importlib.import_module(name).as_markdown(record)
