"""Checks the plug-in against the real SGLang: prompts, pixels and greedy answers equal those of transformers.

    python tests/export/sglang_check.py EXPORTED_VLM

in an environment with sglang (0.5.23), liteframe and av, for a model of the toy model's size; float32, with or without
a GPU. It is no test, since SGLang is no dependency. Prints a line for each check; any difference ends it with an error.
"""

import argparse
import asyncio
import json
import tempfile
import types
from pathlib import Path

import av
import numpy as np
import torch

# Before sglang is imported: it reads the environment.
from sglang_environment import DEVICE

# isort: split
import sglang
import transformers
from liteframe_serving.prompts import BYTES
from PIL import Image
from sglang.srt.utils.video_decoder import VideoDecoderWrapper
from transformers import AutoModelForImageTextToText, AutoProcessor

from liteframe.data.video.sampling import at_fps
from liteframe.data.video.timeline import Timeline

SHAPES = [(1, 48, 64), (4, 64, 64), (5, 90, 50), (8, 360, 640), (23, 64, 200), (64, 64, 64)]
PROMPT = "<|im_start|>user\n{}Which way does the red circle move?<|im_end|>\n<|im_start|>assistant\n"
NEW_TOKENS = 24
BEST = 20  # tokens of each step whose probabilities are compared
FRAMES = 12  # of a file


def said(what, value):
    print(f"ok  {what}: {value}", flush=True)


def noise(number, *shape):
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def write_video(path, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def cases(image_token, file):
    """What is asked: name, text, videos as transformers gets them, images, videos as SGLang gets them."""
    decoded = VideoDecoderWrapper(str(file))
    shown = decoded.get_frames_at(at_fps(Timeline.constant_rate(len(decoded), 1.0), target_fps=1.0, max_frames=FRAMES))
    assert len(shown) == FRAMES < len(decoded)
    one, two, images = noise(0, 23, 64, 80, 3), noise(1, 6, 40, 64, 3), [noise(2, 64, 64, 3), noise(3, 30, 64, 3)]
    return [
        ("a video", "<video>\n", [one], [], [one]),
        ("two videos", "<video>\n<video>\n", [two, one], [], [two, one]),
        ("image, video, image", f"{image_token}\n<video>\n{image_token}\n", [two], images, [two]),
        ("an image", f"{image_token}\n", [], images[:1], []),
        ("text alone", "", [], [], []),
        (f"{FRAMES} frames of a file of {len(decoded)}", "<video>\n", [shown], [], [str(file)]),
    ]


def check_processor(sglangs, ours):
    def compare(text, videos, images=()):
        expected = ours(text=text, videos=videos, images=list(images), **BYTES)
        request = types.SimpleNamespace(video_data=videos)
        data = [Image.fromarray(image) for image in images]
        found = asyncio.run(sglangs.process_mm_data_async(data, None, text, request))
        assert found.input_ids == expected["input_ids"][0].tolist()
        assert torch.equal(torch.cat([item.feature for item in found.mm_items]), expected["pixel_values_videos"])
        assert [len(item.feature) for item in found.mm_items] == expected["video_frames"].tolist()
        places = [i for item in found.mm_items for first, last in item.offsets for i in range(first, last + 1)]
        assert places == (expected["input_ids"][0] == ours.image_token_id).nonzero().flatten().tolist()
        return found.mm_items

    for number, shape in enumerate(SHAPES):
        (item,) = compare(PROMPT.format("<video>\n"), [noise(number, *shape, 3)])
        features = sum(last - first + 1 for first, last in item.offsets)
        said(f"T={shape[0]} {shape[1]}x{shape[2]}", f"{features} features, prompt and pixels equal")
    text = PROMPT.format(f"{ours.image_token}\n<video>\n<video>\n")
    items = compare(text, [noise(7, 6, 64, 64, 3), noise(8, 17, 40, 80, 3)], [noise(9, 64, 64, 3)])
    said("image, video, video", [(item.modality.name, len(item.feature)) for item in items])
    try:
        compare(PROMPT.format("<video>\n<video>\n"), [noise(7, 6, 64, 64, 3)])
    except ValueError as error:
        said("a placeholder too many", error)
    else:
        raise AssertionError("a placeholder too many was accepted")


def check_answers(engine, model, ours, asked):
    settings = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
    expected = []
    for _, text, videos, images, _ in asked:
        inputs = ours(text=PROMPT.format(text), videos=videos, images=images).to(DEVICE)
        with torch.inference_mode():
            answer = model.generate(
                **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        tokens = answer.sequences[0, inputs["input_ids"].shape[1] :]
        best = torch.stack(answer.logits)[:, 0].float().log_softmax(-1).topk(BEST).values
        expected.append((tokens.tolist(), best.cpu()))
    for attempt in ("at once", "again, from SGLang's caches"):
        found = engine.generate(
            prompt=[PROMPT.format(text) for _, text, *_ in asked],
            video_data=[files for *_, files in asked],
            image_data=[[Image.fromarray(i) for i in images] for *_, images, _ in asked],
            sampling_params=settings,
            return_logprob=True,
            top_logprobs_num=BEST,
        )
        for (name, *_), answer, (tokens, log_probabilities) in zip(asked, found, expected, strict=True):
            information = answer["meta_info"]
            assert answer["output_ids"] == tokens, (name, answer["output_ids"], tokens)
            best = torch.tensor([[value for value, *_ in step] for step in information["output_top_logprobs"]])
            largest = float((best - log_probabilities).abs().max())
            assert largest <= 1e-4, (name, largest)
            counted = f"{information['prompt_tokens']} tokens, {information['cached_tokens']} of them cached"
            agreed = f"{NEW_TOKENS} greedy tokens equal, log probabilities of the best {BEST} within {largest:.1e}"
            said(f"{name}, {attempt}", f"{counted}; {agreed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `liteframe export hf-vlm` wrote, of the toy model's size")
    folder = parser.parse_args().folder
    versions = {"sglang": sglang.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    said("versions", json.dumps({**versions, "device": DEVICE}))
    engine = sglang.Engine(
        model_path=str(folder), dtype="float32", device=DEVICE, attention_backend="torch_native",
        sampling_backend="pytorch", grammar_backend="none", disable_cuda_graph=True, disable_overlap_schedule=True,
        mem_fraction_static=0.2, max_total_tokens=16384, context_length=8192,
        chunked_prefill_size=64,  # so that a video's tokens are split
        mm_process_config={"video": {"num_frames": FRAMES}},
    )  # fmt: skip
    try:
        architecture = engine.tokenizer_manager.model_config.hf_config.architectures[0]
        assert not engine.server_args.trust_remote_code
        said("served without remote code", architecture)
        ours = AutoProcessor.from_pretrained(folder)
        check_processor(engine.tokenizer_manager.mm_processor, ours)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "noise.mp4"
            write_video(file, noise(4, 30, 64, 80, 3))
            check_answers(engine, model, ours, cases(ours.image_token, file))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
