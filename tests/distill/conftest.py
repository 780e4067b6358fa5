"""A tiny teacher, a few tiny videos, and a way to run train_ctd.py's entry point."""

import sys

import pytest
from ctd_world import make_vlm_folder, write_video

import train_ctd


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory):
    return make_vlm_folder(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"clip{number}.mp4", frames=24 if number else 9, seed=number)
    return folder


@pytest.fixture(scope="session")
def tiny_config(vlm_folder, video_folder, tmp_path_factory):
    """A configuration file of a run of a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(
        f"""
seed_everything: 3
run: overridden
model:
  teacher: {{name: "{vlm_folder}"}}
  student: {{dim: 16, depth: 2, heads: 2, mlp_dim: 32, patch_size: 8, image_size: 64, teacher_dim: 32,
            downsample: {{1: [2, 2, 2], 2: [2, 1, 1]}}, clip_frames: 8}}
  target: {{statistics_clips: 4}}
  optimizer: {{lr: 1.0e-3, warmup_steps: 2}}
data: {{videos: "{video_folder}", batch_size: 2, workers: 0, min_fps: 4}}
trainer: {{max_steps: 7, val_check_interval: 3, accelerator: cpu, log_every_n_steps: 1}}
checkpoint: {{every_n_steps: 2}}
panel: {{every_n_steps: 3}}
"""
    )
    return path


@pytest.fixture
def fit(monkeypatch, tiny_config):
    """Run `train_ctd.py fit ...` in this process."""

    def run(*arguments, config=tiny_config):
        monkeypatch.setattr(sys, "argv", ["train_ctd.py", "fit", "--config", str(config), *map(str, arguments)])
        train_ctd.main()

    return run
