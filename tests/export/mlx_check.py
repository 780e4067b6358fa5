"""Checks mlx_model.py, which each exported Video LLM carries, against mlx-vlm and transformers.

    python tests/export/mlx_check.py [EXPORTED_VLM]

in an environment with mlx-vlm (0.7.10; `mlx[cpu]` on Linux) and liteframe; without a folder, with small random exports
of both families. It is no test, since mlx-vlm is no dependency. Prints a line for each check; any difference ends it
with an error.
"""

import argparse
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import mlx.core as mx
import numpy as np
import torch
from mlx_vlm import load, stream_generate
from mlx_vlm.convert import convert
from worlds.exports import make_export

from liteframe.models.vlm.load import load_video_llm

LENGTHS = (1, 4, 5, 23)
NEW_TOKENS = 16
QUESTION = "What happens in the video?"


def said(what, value):
    print(f"ok  {what}: {value}", flush=True)


def noise(frames, height, width, seed):
    """A video of blocks of noise: [T,H,W,3] uint8."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def as_mlx(inputs):
    """transformers' inputs as arrays of MLX."""
    names = {"attention_mask": "mask"}
    return {names.get(name, name): mx.array(value.numpy()) for name, value in inputs.items()}


def difference(ours, theirs):
    """Largest difference, as a part of the largest value."""
    theirs = theirs.detach().float().numpy()
    return float(np.abs(np.array(ours.astype(mx.float32)) - theirs).max() / np.abs(theirs).max())


def check_positions(model, mlx_model):
    """Positions resampled for grids that are larger, smaller and not square."""
    encoder = model.model.vision_tower.encoder
    for grid in ((8, 8), (6, 10), (2, 4), (16, 4)):
        found = difference(mlx_model.vision_tower._positions(grid), encoder._positions(grid))
        assert found < 1e-5, (grid, found)
    said("positions of four grids", "within 1e-5")


def check_videos(model, processor, mlx_model, mlx_processor):
    """Features, logits and greedy tokens of videos of several lengths, two videos, an image, and text alone."""
    size = model.config.vision_config.image_size
    cases = [[noise(frames, size, size, frames)] for frames in LENGTHS] + [
        [noise(5, 50, 70, 1), noise(9, 70, 50, 2)],
        [],
    ]
    answers, largest = set(), 0.0
    for videos in cases:
        content = [{"type": "video"}] * len(videos) + [{"type": "text", "text": QUESTION}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(text=[prompt], videos=videos or None)
        theirs = mlx_processor(text=[prompt], videos=videos or None)
        assert all(torch.equal(inputs[name], theirs[name]) for name in inputs), "the folder's own processor differs"
        arrays = as_mlx(inputs)
        with torch.inference_mode():
            logits = model(**inputs).logits
            answer = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
        ids, rest = arrays.pop("input_ids"), {k: v for k, v in arrays.items() if k != "mask"}
        largest = max(largest, difference(mlx_model(ids, **rest).logits, logits))
        stopping = mlx_processor.tokenizer.stopping_criteria
        stopping.eos_token_ids = []  # all answers are of one length, as transformers' here
        banned = dict.fromkeys(np.atleast_1d(model.generation_config.eos_token_id).tolist(), -1e9)
        found = [
            step.token
            for step in stream_generate(
                mlx_model, mlx_processor, prompt="", input_ids=ids, mask=arrays.get("mask"), max_tokens=NEW_TOKENS,
                temperature=0.0, logit_bias=banned, **rest,
            )
        ][:NEW_TOKENS]  # fmt: skip
        expected = answer[0, ids.shape[1] :].tolist()
        assert found == expected, (len(videos), found, expected)
        answers.add(tuple(found))
    assert largest < 1e-4, largest
    assert len(answers) > 1, "the same answer to everything proves nothing"
    said(f"{len(cases)} prompts", f"{NEW_TOKENS} greedy tokens equal, logits within {largest:.0e} of the largest")


def check_quantized(folder, mlx_model, place):
    """mlx-vlm's own conversion to 8 bits still loads, and its features are near."""
    convert(str(folder), mlx_path=str(place), quantize=True, q_bits=8, q_group_size=32, trust_remote_code=True)
    quantized, _ = load(str(place), trust_remote_code=True)
    size = mlx_model.config.vision_config.image_size
    frames = mx.array(noise(5, size, size, 3)).transpose(0, 3, 1, 2)
    (before,), (after,) = (m.video_features(frames, [5]) for m in (mlx_model, quantized))
    before, after = (np.array(x.astype(mx.float32)).ravel() for x in (before, after))
    cosine = float(before @ after / np.linalg.norm(before) / np.linalg.norm(after))
    assert cosine > 0.99, cosine
    said("converted to 8 bits by mlx-vlm", f"cosine of the features {cosine:.4f}")


def check(folder, place):
    """All checks of one exported folder."""
    model, processor = load_video_llm(folder, dtype=torch.float32)
    mlx_model, mlx_processor = load(str(folder), trust_remote_code=True)
    check_positions(model, mlx_model)
    check_videos(model, processor, mlx_model, mlx_processor)
    check_quantized(folder, mlx_model, place / "quantized")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="exported Video LLM")
    folder = parser.parse_args().folder
    said("versions", {name: version(name) for name in ("mlx", "mlx_vlm", "torch", "transformers")})
    said("device", mx.default_device())
    place = Path(tempfile.mkdtemp())
    try:
        if folder is not None:
            check(folder, place)
        for family in ("internvl", "llava_onevision") if folder is None else ():
            said("family", family)
            (place / family).mkdir()
            check(make_export(family, place / family), place / family)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
