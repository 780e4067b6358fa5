"""A tiny teacher, a few tiny videos, and a way to run train_ctd.py's entry point."""

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

import train_ctd

ROOT = Path(__file__).resolve().parents[2]


def write_video(path, frames=24, fps=8, size=64, seed=0):
    """Write H.264: smooth colour blobs that drift, different for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    phase, speed = rng.uniform(0, 6.28, (3, 1, 1)), rng.uniform(0.1, 0.5, (3, 1, 1))
    turn = rng.uniform(2, 8, (3, 2, 1, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            image = 127 + 120 * np.sin(phase + speed * t + turn[:, 0] * x + turn[:, 1] * y)
            frame = av.VideoFrame.from_ndarray(image.transpose(1, 2, 0).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_vlm_folder(folder):
    """A random InternVL: 32 channels, 2 blocks, 8x8 patches of 8 pixels, 64 px."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": [64, 64], "patch_size": [8, 8], "attention_bias": True, "use_mean_pooling": True,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "vocab_size": 100, "hidden_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    model = InternVLForConditionalGeneration(InternVLConfig(vision_config=vision, text_config=text))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


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
