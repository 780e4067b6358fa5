"""Tiny videos and tiny teachers for the tests of distillation."""

import json
from pathlib import Path

import av
import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]


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


def make_vlm_folder(folder, **vision):
    """A random InternVL: 32 channels, 2 blocks, 8x8 patches of 8 pixels, 64 px, unless told otherwise."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": [64, 64], "patch_size": [8, 8], "attention_bias": True, "use_mean_pooling": True, **vision,
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
