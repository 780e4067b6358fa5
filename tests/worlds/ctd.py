"""Tiny videos, tiny teachers and runs of a second for the tests of distillation."""

import json

import av
import numpy as np
import torch
import yaml

from worlds.vlms import random_internvl


def write_video(path, frames=24, fps=8, size=64, seed=0):
    """Write H.264: smooth colour blobs that drift, different for each seed; size is a side or (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    phase, speed = rng.uniform(0, 6.28, (3, 1, 1)), rng.uniform(0.1, 0.5, (3, 1, 1))
    turn = rng.uniform(2, 8, (3, 2, 1, 1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            image = 127 + 120 * np.sin(phase + speed * t + turn[:, 0] * x + turn[:, 1] * y)
            frame = av.VideoFrame.from_ndarray(image.transpose(1, 2, 0).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_vlm_folder(folder, **vision):
    """A random InternVL: 32 channels, 2 blocks, 8x8 patches of 8 pixels, 64 px, unless told otherwise."""
    torch.manual_seed(0)
    model = random_internvl(
        **{"num_hidden_layers": 2, "image_size": [64, 64], "use_mean_pooling": True, **vision},
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    statistics = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


def write_ctd_config(path, teacher, videos, run="overridden", model=None, **sections):
    """The YAML of a run; `model` and `sections` hold what differs, `model` by the names of its parts."""
    settings = {
        "seed_everything": 3,
        "run": str(run),
        "model": {
            "teacher": {"name": str(teacher)},
            "student": {
                "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32, "patch_size": 8, "image_size": 64, "teacher_dim": 32,
                "downsample": {1: [2, 2, 2], 2: [2, 1, 1]}, "clip_frames": 8,
            },
            "target": {"statistics_clips": 4},
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        },
        "data": {"videos": str(videos), "batch_size": 2, "workers": 0, "min_fps": 4},
        "trainer": {"max_steps": 7, "val_check_interval": 3, "accelerator": "cpu", "log_every_n_steps": 1},
        "checkpoint": {"every_n_steps": 2},
        "panel": {"every_n_steps": 3},
    }  # fmt: skip
    for whole, changes in ((settings["model"], model or {}), (settings, sections)):
        for name, change in changes.items():
            whole[name] = {**whole.get(name, {}), **change}
    path.write_text(yaml.safe_dump(settings))
    return path
