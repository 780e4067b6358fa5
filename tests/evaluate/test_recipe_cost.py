"""The figures of docs/cost.md: reckoned again by hand, and no other than the script's."""

import json

import pytest
from worlds import ROOT

from benchmarks import recipe_cost
from benchmarks.recipe_cost import MARKERS, Assumptions, lma_sample, measured_rate, recipe, tables

# Table 1 of the paper for 256 frames, TFLOP, and its attention products: 4 * tokens^2 * channels, frame by frame.
TEACHER, STUDENT = 158.80, 17.92
TEACHER_ATTENTION = 256 * 24 * 4 * 1025**2 * 1024 / 1e12
STUDENT_ATTENTION = 4 * 4 * 768 * (256 * 1025**2 + 128 * 257**2 + 64 * 257**2) / 1e12
DAY = 86400


def test_shares_follow_from_the_papers_flops():
    flops = recipe(Assumptions())["flops_per_frame"]
    assert flops["linear"]["teacher_share"] == pytest.approx(TEACHER / (TEACHER + 3 * STUDENT), abs=1e-4)
    assert flops["linear"]["teacher_share"] == pytest.approx(0.747, abs=5e-4)
    assert flops["linear"]["ceiling"] == pytest.approx(3.95, abs=5e-3)
    taught, learned = TEACHER + TEACHER_ATTENTION, 3 * (STUDENT + STUDENT_ATTENTION)
    assert flops["full"]["ceiling"] == pytest.approx((taught + learned) / learned, rel=1e-3)


def test_recipe_at_45_percent():
    result = recipe(Assumptions(utilization=(0.45,)))
    (rate,) = result["rates"]
    per_frame = (TEACHER + TEACHER_ATTENTION + 3 * (STUDENT + STUDENT_ATTENTION)) * 1e12 / 256
    live = 8 * 989e12 * 0.45 / per_frame
    assert rate["live_frames_per_second"] == pytest.approx(live, rel=1e-3)
    assert rate["frames_per_epoch"] == pytest.approx(live * 21 * DAY / 1800, rel=1e-3)
    assert result["bytes_per_frame"]["bf16"] == 16 * 16 * 1024 / 4 * 2 == 131_072
    assert 65_536 < result["bytes_per_frame"]["int8"] < 66_000
    assert rate["view_bytes"]["bf16"] == pytest.approx(483e9, rel=5e-3)
    assert rate["cores"]["random"] == pytest.approx(237, abs=1)
    assert result["live_gpu_hours"] == 21 * 24 * 8
    student = result["live_gpu_hours"] / result["flops_per_frame"]["full"]["ceiling"]
    for views, hours in result["cached_gpu_hours"].items():
        build = views * rate["frames_per_epoch"] * (TEACHER + TEACHER_ATTENTION) * 1e12 / 256 / (989e12 * 0.45) / 3600
        assert hours == pytest.approx(student + build, rel=1e-3)


def test_language_model_is_qwen_7b():
    """6.53 billion weights in linear layers; three passes over the tokens of 128, 256 and 512 frames."""
    sample = lma_sample(Assumptions())
    linear = 3 * 2 * 6.5257e9 * 16 * (128 + 256 + 512) / 3
    assert linear < sample["language_model"] < 1.2 * linear
    assert sample["encoder"] == pytest.approx(
        (STUDENT + STUDENT_ATTENTION) * 1e12 * (128 + 256 + 512) / 3 / 256, rel=1e-3
    )


def test_page_shows_what_the_script_wrote():
    record = json.loads((ROOT / "benchmarks" / "recipe_cost.json").read_text())
    page = (ROOT / "docs" / "cost.md").read_text()
    assert page.split(MARKERS[0])[1].split(MARKERS[1])[0] == tables(record)
    assert record["recipe"] == json.loads(json.dumps(recipe(Assumptions())))


def test_gpu_rate_is_taken_from_a_gpu_only(tmp_path):
    path = tmp_path / "encoder.json"
    rows = [
        {"encoder": encoder, "variant": variant, "frames": frames, "median_ms": ms}
        for encoder, variant, frames, ms in (
            ("teacher", "eager", 256, 512.0), ("teacher", "compiled", 256, 256.0), ("teacher", "compiled", 8, 1.0),
            ("student", "compiled", 256, 25.6), ("student", "kernels", 256, 51.2),
        )
    ]  # fmt: skip
    rows.append({"encoder": "student", "variant": "x", "frames": 256, "status": recipe_cost.NO_GPU})
    for on_gpu in (False, True):
        path.write_text(json.dumps({"machine": {"measured_on_gpu": on_gpu}, "rows": rows}))
        found = measured_rate(path)
        assert (found is not None) == on_gpu
    assert found["live_frames_per_second"] == pytest.approx(1 / (1e-3 + 3 * 1e-4))
    assert found["ratio"] == pytest.approx(1.3 / 0.3)
    record = json.loads((ROOT / "benchmarks" / "recipe_cost.json").read_text())
    assert "Measured GPU rate: 769 frames/s a GPU live, 3,333 cached (4.33x)" in tables(
        {**record, "measured_rate": found}
    )
