"""The vLLM plug-in, as far as it can be tested without vLLM; vllm_check.py tests the rest where vLLM is installed."""

import configparser
import json
import subprocess
import sys
import types
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from liteframe_serving.prompts import (
    BYTES,
    frames_of,
    frames_that_fit,
    image_ids,
    pixels,
    served_name,
    video_ids,
    video_ids_within,
)
from liteframe_serving.served import ServedMedia, ServedVision, language_architecture, served_classes
from liteframe_serving.vllm import PLACES, register
from PIL import Image
from safetensors import safe_open
from worlds import ROOT
from worlds.exports import FAMILIES, make_export

from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.load import load_video_llm


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return make_export(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_video_llm(folder)


def test_entry_point_and_lazy_import():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    value = config["options.entry_points"]["vllm.general_plugins"].strip()
    assert value == "liteframe = liteframe_serving.vllm:register"
    (found,) = entry_points(group="vllm.general_plugins", name="liteframe")
    assert found.value == "liteframe_serving.vllm:register"
    code = "import sys, liteframe_serving.vllm; print(sorted({'vllm', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Registry:
    def __init__(self):
        self.models = {"Other": "elsewhere:Other"}
        self.calls = 0

    def get_supported_archs(self):
        return self.models.keys()

    def register_model(self, architecture, place):
        self.models[architecture] = place
        self.calls += 1


class Loaders:
    def __init__(self):
        self.found = {}

    def register(self, name):
        return lambda loader: self.found.setdefault(name, loader)


@pytest.fixture
def registered(monkeypatch):
    """What `register`, called twice, has told vLLM: models and video loaders."""
    models, loaders = Registry(), Loaders()
    video = types.SimpleNamespace(VIDEO_LOADER_REGISTRY=loaders, VideoBackend=object)
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(ModelRegistry=models))
    monkeypatch.setitem(sys.modules, "vllm.multimodal", types.SimpleNamespace(video=video))
    monkeypatch.setitem(sys.modules, "vllm.multimodal.video", video)
    register()
    register()
    yield models, loaders
    del sys.modules["liteframe_serving.vllm.video_loader"]


def test_register_may_be_called_twice(registered, folder):
    models, loaders = registered
    assert models.calls == len(PLACES) == len(FAMILIES)
    assert list(loaders.found) == ["liteframe"]
    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    module, name = models.models[architecture].split(":")
    source = ROOT / "export" / Path(*module.split(".")).with_suffix(".py")
    assert "globals().update(SERVED)" in source.read_text()  # which vLLM alone can import
    assert name in served_classes(object, module)


@pytest.mark.parametrize(
    ("most", "fps", "rate", "indices"),
    [
        (4, -1, 8.0, [7, 23, 39, 54]),  # middles of four equal spans of frames 0 to 63
        (-1, -1, 8.0, list(range(64))),
        (32, 2, 8.0, list(range(2, 64, 4))),
        (4, -1, 0.0, [7, 23, 39, 54]),  # a file that does not say its rate
    ],
)
def test_the_server_looks_at_the_middles_of_equal_spans(registered, most, fps, rate, indices):
    loader = registered[1].found["liteframe"]
    source = types.SimpleNamespace(total_frames_num=64, original_fps=rate)
    target = types.SimpleNamespace(num_frames=most, fps=fps)
    assert loader.compute_frames_index_to_sample(source=source, target=target) == indices


def test_every_exported_weight_has_a_place(folder, loaded):
    model, _ = loaded
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
    renamed = {served_name(name) for name in names}
    assert len(renamed) == len(names)
    # Names that vLLM's model gives to its parts: those of the modules themselves, and `model` within the causal LM.
    parts = {
        "vision_tower": model.model.vision_tower,
        "multi_modal_projector": model.model.multi_modal_projector,
        "language_model.model": model.model.language_model,
        "language_model.lm_head": model.lm_head,
    }
    wanted = {f"{part}.{name}" for part, module in parts.items() for name in module.state_dict()}
    if getattr(model.config.text_config, "tie_word_embeddings", False):  # which some text configs do not have
        wanted.remove("language_model.lm_head.weight")
    wanted |= {name for name, _ in model.model.named_parameters(recurse=False)}  # LLaVA-OneVision's newline
    assert renamed == wanted
    with pytest.raises(ValueError, match="some_other"):
        served_name("some_other.weight")


def timed(processor, video):
    """A video as vLLM hands it over: with its times, a frame a second, where the model is told them."""
    facts = {"fps": 1.0, "frames_indices": list(range(len(video)))}
    return (video, facts) if processor.needs_times else video


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 48, 64), (4, 64, 64), (5, 90, 50), (23, 64, 200)])
def test_prompt_and_pixels_are_those_of_the_processor(loaded, frames, height, width):
    _, processor = loaded
    video = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    expected = processor(text="<|im_start|>user\n<video>\nWhich?", videos=[video])
    start, end = "<|im_start|>user\n", "\nWhich?"
    around = [processor.tokenizer.encode(text, add_special_tokens=False) for text in (start, end)]
    assert [*around[0], *video_ids(processor, frames), *around[1]] == expected["input_ids"][0].tolist()
    found = pixels(processor, [timed(processor, video), timed(processor, list(video))], [])
    assert found["video_frames"].tolist() == [frames, frames]
    as_bytes = found["pixel_values_videos"]
    assert as_bytes.nbytes == expected["pixel_values_videos"].nbytes / 4 * 2
    assert torch.equal(processor.normalized(as_bytes), torch.cat([expected["pixel_values_videos"]] * 2))
    text = "<|im_start|>user\n<video>\nWhich?"
    assert torch.equal(as_bytes[:frames], processor(text=text, videos=[video], **BYTES)["pixel_values_videos"])


def test_features_of_bytes_are_those_of_normalized_frames(loaded):
    model, processor = loaded
    video = np.random.default_rng(3).integers(0, 256, (9, 48, 64, 3), dtype=np.uint8)
    inputs = processor(text="<video>", videos=[video])
    with torch.inference_mode():
        expected = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_frames"]).pooler_output
        given = pixels(processor, [timed(processor, video)], [])
        given.pop("video_milliseconds", None)
        found = model.model.get_video_features(**given).pooler_output
    assert (found[0] - expected[0]).abs().max() <= 1e-5 * expected[0].abs().max()


def test_images_are_videos_of_one_frame(loaded):
    _, processor = loaded
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    expected = processor(text=processor.image_token, images=[image])
    assert image_ids(processor) == expected["input_ids"][0].tolist()
    found = pixels(processor, [], [Image.fromarray(image)])
    assert torch.equal(processor.normalized(found["pixel_values"]), expected["pixel_values_videos"])


@pytest.mark.parametrize("tokens", [1, 10, 100, 1000, 8192])
def test_the_longest_video_fills_the_budget(loaded, tokens):
    _, processor = loaded
    frames = frames_that_fit(processor, tokens)
    assert frames % processor.frames_per_slot == 0
    assert frames == 4 or len(video_ids(processor, frames)) <= tokens
    assert len(video_ids(processor, frames + 1)) > tokens


def test_a_video_longer_than_the_context_is_refused_with_the_remedy(loaded):
    _, processor = loaded
    ids = video_ids(processor, 40)
    assert video_ids_within(processor, 40, len(ids)) == ids
    with pytest.raises(ValueError, match=rf"of 40 frames takes {len(ids)} tokens.*no more than 36 frames.*num_frames"):
        video_ids_within(processor, 40, len(ids) - 1)


def test_positions_are_those_of_the_processor(loaded):
    """An image between two videos whose frames come at their own times."""
    model, processor = loaded

    class Served(ServedVision):
        family, config = family_of(model.config.model_type), model.config

    if processor.mrope is None:
        with pytest.raises(ValueError, match="counts on one axis"):
            Served().mrope_positions([1], [])
        return
    side = model.config.vision_config.image_size
    videos = [np.zeros((frames, side, side, 3), np.uint8) for frames in (9, 4)]
    facts = [{"fps": 4.0, "frames_indices": list(range(3, 3 + len(v))), "total_num_frames": 99} for v in videos]
    text = f"a <video> b {processor.image_token} c <video>"
    expected = processor(text=text, videos=videos, images=[videos[0][0]], video_metadata=facts)
    found = pixels(processor, list(zip(videos, facts, strict=True)), [])
    seconds = (found["video_milliseconds"] / 1000).tolist()
    assert seconds == [frame / 4 for video in videos for frame in range(3, 3 + len(video))]
    media = [
        ServedMedia(9, side, side, seconds[:9]),
        ServedMedia(1, side, side),
        ServedMedia(4, side, side, seconds[9:]),
    ]
    ids = expected["input_ids"][0].tolist()
    positions, delta = Served().mrope_positions(ids, media)
    assert torch.equal(positions, expected["position_ids"][:, 0])
    assert delta == int(positions.max()) + 1 - len(ids)
    assert video_ids(processor, 4, seconds[9:]) == processor.tokenizer.encode(
        processor.shown_video(4, side, side, seconds[9:]).text, add_special_tokens=False
    )
    with pytest.raises(ValueError, match=r"told when frames are shown.*\(frames, metadata\)"):
        pixels(processor, videos, [])


def test_every_language_half_has_a_name(loaded):
    name = language_architecture(loaded[0].config.text_config)
    assert name in ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3_5ForCausalLM")


def test_frames_that_are_no_bytes_are_refused():
    assert frames_of(torch.zeros(2, 8, 8, 3, dtype=torch.uint8)).shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match="float32"):
        frames_of(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[2, 3, 8, 8\]"):
        frames_of(np.zeros((2, 3, 8, 8), np.uint8))
