"""Weights and features in the real vLLM's model without running its kernels; vllm_check.py calls it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed import (
    destroy_distributed_environment,
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm_generation import noise

from liteframe.models.vlm.load import load_video_llm


def compare_features(folder: Path, config: ModelConfig, found: type) -> Iterator[tuple[str, Any]]:
    """Lines that say what is equal."""
    settings = VllmConfig(
        model_config=config, cache_config=CacheConfig(block_size=16), parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"), load_config=LoadConfig(),
    )  # fmt: skip
    path = folder / "model.safetensors"
    with set_current_vllm_config(settings), set_default_torch_dtype(torch.float32):
        with tempfile.TemporaryDirectory() as place:
            init_distributed_environment(1, 0, f"file://{place}/rendezvous", 0, "gloo")
            initialize_model_parallel()
        model = found(vllm_config=settings).eval()
        loaded = model.load_weights(load_file(path).items())
        destroy_model_parallel()
        destroy_distributed_environment()
    parameters = dict(model.named_parameters())
    missing = sorted(set(parameters) - loaded)
    assert not missing, missing
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    yield f"{len(names)} weights of the checkpoint fill", f"all {len(parameters)} parameters of vLLM's model"

    reference, ours = load_video_llm(folder, dtype=torch.float32)
    videos = [noise(7, 6, 64, 64, 3), noise(8, 17, 40, 80, 3)]
    inputs = ours(text="<video><video>", videos=videos)
    kwargs = {name: inputs[name] for name in ("pixel_values_videos", "video_frames")}
    with torch.inference_mode():
        expected = reference.model.get_video_features(**kwargs).pooler_output
        features = model.embed_multimodal(**kwargs)
    assert [f.shape for f in features] == [f.shape for f in expected]
    largest = max(float((a - b).abs().max()) for a, b in zip(features, expected, strict=True))
    assert largest <= 1e-5
    yield "features of two videos", f"{[list(f.shape) for f in features]}, largest difference {largest:.1e}"

    # Fused projections hold the checkpoint's numbers.
    fused = parameters["language_model.model.layers.0.self_attn.qkv_proj.weight"]
    attention = reference.model.language_model.layers[0].self_attn
    assert torch.equal(fused, torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]))
    yield "qkv of layer 0", "equal"
    yield "answers", "not compared: this build of vLLM needs a GPU"
