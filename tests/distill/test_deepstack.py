"""A run whose student learns deepstack: its cache holds all heads, and its encoder goes into the Video LLM."""

import pytest
import torch
from worlds.ctd import write_ctd_config, write_video
from worlds.vlms import make_qwen3_vl

from liteframe import LiteFrameEncoder, load_teacher, load_video_llm
from liteframe.cli.main import main
from liteframe.distill.cache import TargetCache
from liteframe.reduce.pooled_teacher import PooledTeacher


def test_a_run_from_a_cache_of_all_heads(tmp_path):
    vlm = make_qwen3_vl(tmp_path / "vlm")
    (tmp_path / "videos").mkdir()
    for seed in range(4):
        write_video(tmp_path / "videos" / f"{seed}.mp4", frames=16, seed=seed)
    model = {"teacher": {"deepstack": True}, "student": {"teacher_dim": 64}}
    config = write_ctd_config(
        tmp_path / "run.yaml", vlm, tmp_path / "videos", model=model, trainer={"max_steps": 1, "val_check_interval": 1}
    )
    cache = tmp_path / "cache"
    assert main([*map(str, ("cache", "build", "--config", config, "-o", cache, "--views", 1, "--codec", "int8"))]) == 0
    assert main(["cache", "verify", str(cache), "--sample", "1"]) == 0
    assert TargetCache.open(cache).settings.dim == 64
    run = tmp_path / "run"
    assert main([*map(str, ("distill", "fit", "--config", config, "--run", run, "--data.cache", cache))]) == 0
    encoder = LiteFrameEncoder.from_pretrained(run / "encoder")
    assert encoder.config.deepstack == 1
    video = torch.randn(1, 8, 3, 64, 64)
    pooled = PooledTeacher(load_teacher(str(vlm), deepstack=True))(video).tokens
    with torch.no_grad():
        assert encoder(video).shape == pooled.shape == (1, 2, 4, 4, 64)
    attached, _ = load_video_llm(vlm, encoder=run / "encoder")
    assert len(attached.model.multi_modal_projector) == 2
    plain = ("--model.teacher.deepstack", "false", "--model.student.teacher_dim", 32)
    words = ("distill", "fit", "--config", config, "--run", tmp_path / "no", "--data.cache", cache, *plain)
    with pytest.raises(ValueError, match="dim is 64 there and 32 here"):
        main([*map(str, words)])
