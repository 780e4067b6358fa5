"""`liteframe plan` for CTD: its figures against a real run, PyTorch's own FLOP counter, and sums done by hand."""

import json
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from worlds.students import student_config

from liteframe.cli.main import main
from liteframe.distill.plan import teacher_cost
from liteframe.models.student.cost import cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.load import load_teacher

EIGHT = ["--data.batch_size", "8", "--trainer.devices", "2", "--trainer.max_epochs", "9", "--trainer.max_steps", "-1"]


@pytest.fixture(scope="module")
def plan(tiny_config, tmp_path_factory):
    """A batch of 8 on two devices, 9 epochs of 4 videos, planned in one process."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    words = ["plan", "--config", str(tiny_config), "--steps", "2", "--views", "3", "--json", str(path), *EIGHT]
    assert main([*words, "--data.val_fraction", "0.3"]) == 0
    return json.loads(path.read_text())


def test_size_of_the_run(plan, fit, tmp_path, capsys):
    fit("--run", tmp_path / "run", "--data.val_fraction", "0.3", "--trainer.max_steps", 2)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    videos = report["data"]["train_videos"]
    assert plan["model"]["trained_parameters"] == report["student"]["parameters"]
    assert plan["data"]["videos"] == videos
    assert plan["data"]["frames_per_step"] == 8 * 8
    assert plan["data"]["teacher_tokens_per_step"] == 64 * 64
    assert plan["data"]["student_tokens_per_step"] == 64 * 64 / 16
    assert plan["steps"]["steps"] == 9 * math.ceil(videos / 8)
    assert (plan["steps"]["processes"], plan["steps"]["micro_batch_size"]) == (2, 4)
    encoder = (tmp_path / "run" / "encoder" / "model.safetensors").stat().st_size
    assert plan["disk"]["encoder_bytes"] == pytest.approx(encoder, rel=0.2)
    largest = max(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"))
    weights = 12 * plan["model"]["trained_parameters"]
    assert plan["disk"]["checkpoints_bytes"] == 3 * weights
    assert weights < largest


def test_time_is_that_of_the_warm_up(plan):
    seconds, steps = plan["warm_up"]["seconds_per_step"], plan["steps"]["steps"]
    live = plan["without_cache_measured"]
    assert live["hours"] == pytest.approx(seconds * steps / 3600)
    assert live["cpu_process_hours"] == pytest.approx(2 * live["hours"])
    targets, frames = plan["with_targets_cached_at_best"], plan["with_targets_and_frames_cached_at_best"]
    assert targets["seconds_per_step"] == pytest.approx(seconds * (1 - plan["warm_up"]["teacher_share"]), rel=1e-3)
    assert frames["seconds_per_step"] == pytest.approx(
        seconds * (1 - plan["warm_up"]["teacher_share"] - plan["warm_up"]["data_share"]), rel=1e-3
    )
    assert "communication" in plan["warm_up"]["remark"]
    rate = plan["flops_of_a_step_in_one_process"]
    assert rate["flops_per_second"] == pytest.approx(rate["flops"] / seconds)
    memory = plan["memory_of_a_process"]
    assert memory["measured_peak_bytes"] == pytest.approx(
        sum(value for name, value in memory.items() if name != "measured_peak_bytes")
    )


def test_size_of_a_cache(plan):
    """A clip of 8 frames of 64 pixels has 2 x 4 x 4 tokens of 32 channels; three views and the held-out middle."""
    cache = plan["cache"]
    clips = 3 * plan["data"]["videos"] + plan["data"]["held_out_videos"]
    assert cache["clips"] == clips
    assert cache["targets_bf16_bytes"] == clips * 2 * 4 * 4 * 32 * 2
    assert clips * 2 * 4 * 4 * 32 < cache["targets_int8_bytes"] < 0.65 * cache["targets_bf16_bytes"]
    assert 300 < cache["jpeg_bytes_per_frame"] < 64 * 64 * 3
    assert cache["frames_jpeg_bytes"] == pytest.approx(clips * 8 * cache["jpeg_bytes_per_frame"], abs=1)


def test_flops_agree_with_pytorchs_counter(vlm_folder, plan):
    teacher = load_teacher(vlm_folder)
    config = student_config(dim=16, depth=2, mlp_dim=32, teacher_dim=32)
    student, video = LiteFrameEncoder(config), torch.randn(4, 8, 3, 64, 64)
    # The counter knows matrix products and some fused attention kernels, which ones depends on torch's version. So
    # attention is taken apart into products.
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        with FlopCounterMode(display=False) as taught:
            teacher(video)
        with FlopCounterMode(display=False) as learned:
            student(video)
    counted = plan["flops_of_a_step_in_one_process"]
    assert counted["teacher_flops"] == pytest.approx(taught.get_total_flops(), rel=0.01)
    # PyTorch counts no products of shifted frames, which the temporal convolutions are made of.
    assert counted["trained_flops"] / 3 == pytest.approx(learned.get_total_flops(), rel=0.05)
    price = cost(config, 32)
    assert counted["trained_flops"] == 3 * (price.flops + price.attention_flops)
    assert teacher_cost(teacher, 32, (64, 64)).flops < counted["teacher_flops"]


def test_it_says_what_is_wrong(tiny_config, tmp_path, capsys):
    assert main(["plan", "--config", str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", "--config", str(tiny_config), "--data.batch_sise", "2"])
    assert "batch_sise" in capsys.readouterr().err
    assert main(["plan", "--config", str(tiny_config), "--trainer.devices", "3"]) == 2
    assert "data.batch_size=2" in capsys.readouterr().err
