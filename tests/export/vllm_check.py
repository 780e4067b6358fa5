"""Checks the plug-in against the real vLLM, as far as a machine without a GPU allows.

    VLLM_TARGET_DEVICE=cpu python tests/export/vllm_check.py EXPORTED_VLM

in an environment with vllm (0.33) and liteframe; it is no test, since vLLM is no dependency. Prints a line for each
check; any difference ends it with an error.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
import torch
import vllm
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.models import ModelRegistry
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.plugins import load_general_plugins
from vllm.utils.torch_utils import set_default_torch_dtype

from liteframe.load_vlm import load_video_llm

ARCHITECTURE = "LiteFrameInternVLForConditionalGeneration"
SHAPES = [(1, 48, 64), (4, 64, 64), (5, 90, 50), (8, 360, 640), (23, 64, 200), (64, 64, 64)]
QUESTION = "Which way does the red circle move?"


def said(what, value):
    print(f"ok  {what}: {value}", flush=True)


def noise(number, *shape):
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def check_registration(folder):
    assert ARCHITECTURE not in ModelRegistry.get_supported_archs()
    load_general_plugins()
    from liteframe_vllm import register

    register()  # vLLM may call it again
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()
    said("config without remote code", type(AutoConfig.from_pretrained(folder)).__module__)
    config = ModelConfig(model=str(folder), dtype="float32", trust_remote_code=False, max_model_len=8192)
    found, architecture = config.registry.resolve_model_cls(config.architectures, config)
    assert architecture == ARCHITECTURE
    assert config.is_multimodal_model
    said("architecture resolves to", f"{found.__module__}.{found.__name__}")
    return config, found


def check_processor(config, ours):
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    said("vLLM's processor", type(processor).__name__)

    def compare(prompt, videos, images=()):
        expected = ours(text=prompt, videos=list(videos) or None, images=list(images) or None)
        data = {"video": list(videos)} if videos else {}
        data |= {"image": [Image.fromarray(image) for image in images]} if images else {}
        items = processor.info.parse_mm_data(data)
        found = processor(prompt, mm_items=items)
        assert found["prompt_token_ids"] == expected["input_ids"][0].tolist()
        placed = [place for modality in ("image", "video") for place in found["mm_placeholders"].get(modality, ())]
        at = torch.zeros(len(found["prompt_token_ids"]), dtype=torch.bool)
        for place in placed:
            at[place.offset : place.offset + place.length] |= place.is_embed
        assert torch.equal(at, expected["input_ids"][0] == ours.image_token_id)
        kwargs = found["mm_kwargs"].get_data()
        if videos and not images:
            assert torch.equal(kwargs["pixel_values_videos"], expected["pixel_values_videos"])
            assert torch.equal(kwargs["video_frames"], expected["video_frames"])
        return kwargs, found

    marks = f"<|im_start|>user\n{{}}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    for number, shape in enumerate(SHAPES):
        kwargs, found = compare(marks.format("<video>\n"), [noise(number, *shape, 3)])
        tokens = int(found["mm_placeholders"]["video"][0].is_embed.sum())
        said(f"T={shape[0]} {shape[1]}x{shape[2]}", f"{tokens} features, prompt and pixels equal")
    many = [noise(7, 6, 64, 64, 3), noise(8, 17, 40, 80, 3)]
    both, _ = compare(marks.format("<video>\n<video>\n"), many)
    said("two videos", both["video_frames"].tolist())
    compare(
        marks.format("<IMG_CONTEXT>\n<video>\n<IMG_CONTEXT>\n"), many[:1], [noise(9, 64, 64, 3), noise(10, 30, 64, 3)]
    )
    said("image, video, image", "prompt equal")
    dummy = processor.get_dummy_mm_inputs({"video": 2, "image": 1})
    longest = max(place.offset + place.length for places in dummy["mm_placeholders"].values() for place in places)
    assert 8192 - 2 * 40 < longest <= 8192
    said("dummy inputs for 8192 tokens fill", longest)
    return both, many


def check_model(config, found, folder, ours, kwargs, videos):
    cache = CacheConfig(block_size=16)
    settings = VllmConfig(
        model_config=config, cache_config=cache, parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"), load_config=LoadConfig(),
    )  # fmt: skip
    with set_current_vllm_config(settings), set_default_torch_dtype(torch.float32):
        with tempfile.TemporaryDirectory() as place:
            init_distributed_environment(1, 0, f"file://{place}/rendezvous", 0, "gloo")
            initialize_model_parallel()
        model = found(vllm_config=settings).eval()
        path = folder / "model.safetensors"
        with safe_open(path, "pt") as file:
            names = set(file.keys())
        loaded = model.load_weights(load_file(path).items())
    parameters = dict(model.named_parameters())
    missing = sorted(set(parameters) - loaded)
    assert not missing, missing
    said(f"{len(names)} weights of the checkpoint fill", f"all {len(parameters)} parameters of vLLM's model")
    reference, _ = load_video_llm(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference.model.get_video_features(kwargs["pixel_values_videos"], kwargs["video_frames"])
        features = model.embed_multimodal(**kwargs)
    assert [len(f) for f in features] == [len(f) for f in expected.pooler_output]
    largest = max(float((a - b).abs().max()) for a, b in zip(features, expected.pooler_output, strict=True))
    assert largest <= 1e-5
    said("features of two videos", f"{[list(f.shape) for f in features]}, largest difference {largest:.1e}")
    # Fused projections hold the checkpoint's numbers.
    fused = parameters["language_model.model.layers.0.self_attn.qkv_proj.weight"]
    attention = reference.model.language_model.layers[0].self_attn
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(fused, torch.cat(parts))
    said("qkv of layer 0", "equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `liteframe export hf-vlm` wrote, of the toy model's size")
    folder = parser.parse_args().folder
    said("versions", json.dumps({"vllm": vllm.__version__, "torch": torch.__version__}))
    config, found = check_registration(folder)
    _, ours = load_video_llm(folder)
    kwargs, videos = check_processor(config, ours)
    check_model(config, found, folder, ours, kwargs, videos)


if __name__ == "__main__":
    main()
