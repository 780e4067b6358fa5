"""Exports beside transformers' own Video LLMs: what these take, ours take, with the same meaning."""

import base64
import io
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from liteframe_export.hf_vlm import save_vlm
from packaging.version import Version
from PIL import Image
from torch.nn.functional import cosine_similarity, pad
from transformers import AutoProcessor, BitsAndBytesConfig, LogitsProcessorList
from transformers.video_utils import load_video
from worlds.ctd import write_video
from worlds.exports import FAMILIES
from worlds.students import make_student, student_config

from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

SIZE = {"internvl": 64, "llava_onevision": 80}
VIDEO = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), dtype=np.uint8)
OTHER = VIDEO[:, ::-1].copy()
PICTURES = [Image.fromarray(frame) for frame in VIDEO]
FIRST = VIDEO.transpose(0, 3, 1, 2)
CONSTANT = {"total_num_frames": 8, "fps": 4.0}
SAMPLE = {"do_sample_frames": True}
NEW = 5
# Earlier ones check less, mark answers beside their place, and hand all features to each chunk of a prompt.
CHECKS = Version(transformers.__version__) >= Version("5.23")


@pytest.fixture(scope="module", params=["internvl", "llava_onevision"])
def pair(request, tmp_path_factory):
    """transformers' own Video LLM with its processor, and the export of it with an encoder."""
    place = tmp_path_factory.mktemp(request.param)
    make, demands = FAMILIES[request.param]
    # 64 channels everywhere: kernels for 4 bits on CPUs take multiples of it.
    vision = {} if request.param == "internvl" else {"hidden_size": 64}
    demands = {**demands, "dim": 64, **({"teacher_dim": 64} if vision else {})}
    stock = make(place / "stock", **vision)
    model, processor = load_video_llm(stock, encoder=make_student(student_config(**demands), seed=1))
    (place / "ours").mkdir()
    save_vlm(model, processor, place / "ours")
    theirs, ours = AutoProcessor.from_pretrained(stock), AutoProcessor.from_pretrained(place / "ours")
    size = {"height": SIZE[request.param], "width": SIZE[request.param]}
    theirs.video_processor.size = theirs.image_processor.size = type(theirs.video_processor.size)(**size)
    # The decoder that is installed here, which transformers' own processors do not fall back to.
    theirs.video_processor.fetch_videos = partial(by_pyav, theirs.video_processor)
    video = write_video(place / "a.mp4", frames=24, fps=8, seed=3)
    return SimpleNamespace(stock=theirs, ours=ours, folder=place / "ours", video=str(video), family=request.param)


def by_pyav(self, names, sample_indices_fn=None):
    if isinstance(names, list):
        return list(zip(*(by_pyav(self, name, sample_indices_fn) for name in names), strict=True))
    return load_video(names, backend="pyav", sample_indices_fn=sample_indices_fn)


def frames_of(inputs):
    """Pixels of all frames that a processor gives, [sum of T,3,H,W], whatever it calls them."""
    pixels = inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"]
    return pixels.flatten(0, -4)


VIDEOS = {
    "an array": ([VIDEO], {}),
    "an array alone": (VIDEO, {}),
    "channels first": ([FIRST], {}),
    "a tensor": ([torch.from_numpy(FIRST)], {}),
    "grey": ([VIDEO[..., :1]], {}),
    "images": ([PICTURES], {}),
    "images alone": (PICTURES, {}),
    "arrays": ([list(VIDEO)], {}),
    "tensors": ([list(torch.from_numpy(FIRST))], {}),
    "two": ([VIDEO, OTHER], {}),
    "two in one array": (np.stack([VIDEO, OTHER]), {}),
    "two in lists": ([[VIDEO], [OTHER]], {}),
    "two of images": ([PICTURES, PICTURES[::-1]], {}),
    "4 of 8": ([VIDEO], {"num_frames": 4, **SAMPLE}),
    "4 of 8 images": ([PICTURES], {"num_frames": 4, **SAMPLE}),
    "one a second": ([VIDEO], {"fps": 1, "video_metadata": [CONSTANT], **SAMPLE}),
    "two, one a second": ([VIDEO, OTHER], {"fps": 1, "video_metadata": [CONSTANT] * 2, **SAMPLE}),
    "by modality": ([VIDEO], {"videos_kwargs": {"num_frames": 2, **SAMPLE}}),
    "no sampling": ([VIDEO], {"do_sample_frames": False}),
    "raw": ([VIDEO], {"do_normalize": False, "do_rescale": False}),
    "another mean": ([VIDEO], {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3}),
    "another scale": ([VIDEO], {"rescale_factor": 0.01}),
    "floating": ([VIDEO.astype(np.float32) / 255], {"do_rescale": False}),
    "the size it has": ([VIDEO], {"do_resize": False}),
    "another size": ([VIDEO], {"size": {"height": 160, "width": 96}}),
    "named channels": ([FIRST], {"input_data_format": "channels_first"}),
    "common": ([VIDEO], {"common_kwargs": {"return_tensors": "pt"}}),
    "told": ([VIDEO], {"return_metadata": True, "num_frames": 4, **SAMPLE}),
    "told of a rate": ([VIDEO], {"return_metadata": True, "fps": 2, "video_metadata": CONSTANT, **SAMPLE}),
    "told of all": ([VIDEO], {"return_metadata": True}),
    "padded": ([VIDEO], {"text_kwargs": {"padding": "max_length", "max_length": 64}}),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_that_transformers_takes_are_the_same_frames(pair, name):
    videos, options = VIDEOS[name]
    call = {"text": ["<video> what?"] * (2 if name.startswith("two") else 1), "videos": videos, **options}
    theirs, ours = pair.stock(**{"return_tensors": "pt", **call}), pair.ours(**call)
    expected = frames_of(theirs)
    torch.testing.assert_close(frames_of(ours), expected, atol=1e-6, rtol=0)
    assert ours["video_frames"].tolist() == [len(expected) // len(call["text"])] * len(call["text"])
    assert ours["input_ids"].shape[1] == 64 or name != "padded"
    slots = [pair.ours.slots(n, *expected.shape[-2:]) for n in ours["video_frames"].tolist()]
    tokens = sum(pair.ours.video_text(video).count(pair.ours.image_token) for video in slots)
    assert int((ours["input_ids"] == pair.ours.image_token_id).sum()) == tokens
    if "video_metadata" in theirs:  # which InternVL's loses
        found, wanted = ([int(i) for i in p["video_metadata"][0]["frames_indices"]] for p in (ours, theirs))
        assert found == wanted


def chat(*content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": "what?"}]}]


def test_chats_with_files(pair, tmp_path):
    """Videos and images by name, and how many frames are taken of them."""
    PICTURES[0].save(tmp_path / "a.png")
    buffer = io.BytesIO()
    PICTURES[1].save(buffer, "PNG")
    encoded = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    image, video = {"type": "image", "path": str(tmp_path / "a.png")}, {"type": "video", "path": pair.video}
    calls = [
        (chat(video), {}),
        (chat(video), {"num_frames": 6}),
        (chat(video), {"fps": 2}),
        (chat(video, video), {"num_frames": 3, "do_resize": True}),
        (chat({"type": "video", "video": VIDEO}), {"num_frames": 4}),
        (chat({"type": "video", "video": [str(tmp_path / "a.png")] * 3}), {}),
        ([chat(video), chat({"type": "video", "url": pair.video})], {"num_frames": 2}),
        (chat(image), {}),
        (chat(image, {"type": "image", "base64": encoded}), {}),
        (chat({"type": "image", "image": PICTURES[1]}, image), {}),
    ]
    shared = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    for conversation, options in calls:
        ours = pair.ours.apply_chat_template(conversation, **shared, processor_kwargs=dict(options))
        stills = "image" in str(conversation)
        if stills and pair.family != "internvl":
            continue  # whose tiles cannot be switched off
        tiles = {"crop_to_patches": False} if stills else {}
        theirs = pair.stock.apply_chat_template(conversation, **shared, processor_kwargs={**options, **tiles})
        torch.testing.assert_close(frames_of(ours), frames_of(theirs), atol=1e-6, rtol=0)


def images_of_all_modes():
    shades = np.linspace(0, 255, 64 * 96).reshape(64, 96).astype(np.uint8)
    grey = Image.fromarray(shades)
    alpha = PICTURES[0].copy()
    alpha.putalpha(grey)
    upside_down = PICTURES[0].copy()
    upside_down.getexif()[0x0112] = 3
    return {
        "rgb": (PICTURES[0], VIDEO[0]),
        "grey": (grey, np.stack([shades] * 3, -1)),
        "palette": (PICTURES[0].convert("P"), np.array(PICTURES[0].convert("P").convert("RGB"))),
        "bits": (grey.convert("1"), np.array(grey.convert("1").convert("RGB"))),
        "ink": (PICTURES[0].convert("CMYK"), np.array(PICTURES[0].convert("CMYK").convert("RGB"))),
        "alpha": (alpha, on_white(VIDEO[0], shades)),
        "grey and alpha": (alpha.convert("LA"), on_white(np.array(alpha.convert("L").convert("RGB")), shades)),
        "16 bits": (Image.fromarray(shades.astype(np.uint16) * 257), np.stack([shades] * 3, -1)),
        "turned": (upside_down, VIDEO[0][::-1, ::-1]),
        "a grey array": (shades, np.stack([shades] * 3, -1)),
        "channels first": (VIDEO[0].transpose(2, 0, 1), VIDEO[0]),
        "an array with alpha": (np.array(alpha), on_white(VIDEO[0], shades)),
        "a tensor": (torch.from_numpy(VIDEO[0]), VIDEO[0]),
    }


def on_white(colours, alpha):
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def test_images_of_every_mode_are_seen_as_they_are_meant(pair):
    raw = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    for name, (image, expected) in images_of_all_modes().items():
        found = pair.ours(text=pair.ours.image_token, images=image, **raw)["pixel_values_videos"][0]
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected), name
        if isinstance(image, Image.Image):
            frames = pair.ours(text="<video>", videos=[[image, image]], **raw)["pixel_values_videos"]
            assert torch.equal(frames, torch.stack([found, found])), name
    plain, *wide = (
        pair.ours(text="<video>", videos=[video])["pixel_values_videos"]
        for video in (VIDEO, VIDEO.astype(np.int64), VIDEO.astype(np.uint16) * 257)
    )
    assert all(torch.equal(plain, other) for other in wide)


REFUSED = {  # by both
    "no such file": ("<video>", {"videos": ["none.mp4"]}),
    "no video": ("<video>", {}),
    "two videos": ("<video>", {"videos": [VIDEO, VIDEO]}),
    "more frames than there are": ("<video>", {"videos": [VIDEO], "num_frames": 9, **SAMPLE}),
    "a rate of what": ("<video>", {"videos": [VIDEO], "fps": 1, **SAMPLE}),
    "told of two": ("<video>", {"videos": [VIDEO], "video_metadata": [CONSTANT] * 2, "num_frames": 2, **SAMPLE}),
    "cut": ("<video> what?", {"videos": [VIDEO], "truncation": True, "max_length": 6}),
    "no text": (None, {"videos": [VIDEO]}),
    "seven channels": ("<video>", {"videos": [np.zeros((8, 64, 96, 7), np.uint8)]}),
    "nonsense for videos": ("<video>", {"videos": [VIDEO], "videos_kwargs": {"nonsense": 1}}),
    "frames of two sizes": ("<video>", {"videos": [[PICTURES[0], PICTURES[1].resize((30, 20))]]}),
}
NAMED = {  # by ours, where transformers would pass over it in silence, or has tiles
    "nonsense": ({"nonsense": 1}, "nonsense"),
    "max_patches": ({"max_patches": 3}, "max_patches"),
    "crop_to_patches": ({"images_kwargs": {"crop_to_patches": True}}, "crop_to_patches"),
    "num_frames": ({"num_frames": 4}, "num_frames.*do_sample_frames"),
    "fps": ({"videos_kwargs": {"fps": 4}}, "fps.*do_sample_frames"),
    "size": ({"size": {"height": 60, "width": 64}}, "60x64"),
    "lists": ({"return_tensors": "np"}, "only 'pt'"),
    "text": ({"text_kwargs": {"nonsense": 1}}, "nonsense"),
    "sound": ({"audio": [np.zeros(9)]}, "no audio"),
    "kinds": ({"return_mm_token_type_ids": True}, "return_mm_token_type_ids"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_refuses_is_refused(pair, name):
    text, call = REFUSED[name]
    if text is None and pair.family != "internvl":
        text = [7]
    for processor in (pair.stock, pair.ours) if CHECKS else (pair.ours,):
        with pytest.raises((ValueError, TypeError)):
            processor(text=text, return_tensors="pt", **call)


def test_what_would_be_ignored_is_refused_by_name(pair):
    for options, message in NAMED.values():
        with pytest.raises(ValueError, match=message):
            pair.ours(text="<video>", videos=[VIDEO], **options)
    for video, message in ((VIDEO / 255, "do_rescale=False"), (VIDEO.astype(np.int32) * 257, "0 to 255")):
        with pytest.raises(ValueError, match=message):
            pair.ours(text="<video>", videos=[video])
    for mode, kind in (("I", "32-bit integers"), ("F", "floats")):
        with pytest.raises(ValueError, match=kind):
            pair.ours(text=pair.ours.image_token, images=PICTURES[0].convert("L").convert(mode))


def test_answers_of_a_chat_are_marked_behind_longer_videos(pair):
    """The assistant's mask of transformers, which asks where placeholders were replaced."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}<video> {{ m['content'][1]['text'] }} {% endif %}{% endfor %}"
    )
    turns = [*chat({"type": "video", "video": VIDEO}), {"role": "assistant", "content": "red square"}]
    inputs = pair.ours.apply_chat_template(
        turns, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert [
        where["type"]
        for where in pair.ours(text="a <video> b", videos=[VIDEO], return_text_replacement_offsets=True)[
            "text_replacement_offsets"
        ][0]
    ] == ["video"]
    marked = [int(i) for i, on in zip(inputs["input_ids"][0], inputs["assistant_masks"][0], strict=True) if on]
    if CHECKS:
        assert pair.ours.tokenizer.decode(marked) == "redsquare"


@pytest.fixture(scope="module")
def exported(pair):
    return load_video_llm(pair.folder)[0]


def prompts(pair, *questions):
    return pair.ours(text=[question_prompt(q) for q in questions], videos=[VIDEO, OTHER][: len(questions)])


@torch.inference_mode()
def test_every_way_to_decode_gives_the_greedy_answer(pair, exported):
    inputs = prompts(pair, "Which way does the red circle move?")
    start = expected = inputs["input_ids"]
    while expected.shape[1] < start.shape[1] + NEW:
        rest = {name: inputs[name] for name in ("pixel_values_videos", "video_frames")}
        expected = torch.cat([expected, exported(input_ids=expected, **rest).logits[:, -1:].argmax(-1)], 1)
    assert exported.generation_config.eos_token_id not in expected[0, start.shape[1] :]
    ways = {
        "greedy": {},
        "no cache": {"use_cache": False},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
        "prompt lookup of placeholders": {"prompt_lookup_num_tokens": 20, "max_matching_ngram_size": 1},
        "itself as assistant": {"assistant_model": exported},
        "static cache": {"cache_implementation": "static"},
        "in chunks": {"prefill_chunk_size": 7} if CHECKS else {},
    }
    for way, settings in ways.items():
        found = exported.generate(**inputs, do_sample=False, max_new_tokens=NEW, **settings)
        assert torch.equal(found, expected), way


@torch.inference_mode()
def test_placeholders_that_an_answer_holds_stand_for_no_video(pair, exported):
    """With and without a cache, where the model writes the placeholder itself, in one row of two and in both."""
    inputs = prompts(pair, "Which way?", "Which way does the red circle move and why?")
    length, placeholder = inputs["input_ids"].shape[1], pair.ours.image_token_id

    def write(ids, scores):
        step = ids.shape[1] - length
        for row in {1: (0,), 3: (0, 1)}.get(step, ()):
            scores[row] = torch.where(torch.arange(scores.shape[1]) == placeholder, 9.0, -9.0)
        return scores

    settings = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
    cached, plain = (
        exported.generate(**inputs, **settings, use_cache=use, logits_processor=LogitsProcessorList([write]))
        for use in (True, False)
    )
    assert (cached[:, length:] == placeholder).sum(1).tolist() == [2, 1]
    assert torch.equal(cached, plain)
    with pytest.raises(ValueError, match="image tokens, but the videos give"):
        exported.generate(**{**inputs, "input_ids": pad(inputs["input_ids"], (0, 1), value=placeholder)}, **settings)


@torch.inference_mode()
def test_quantized_models_compute_with_their_quantized_weights(pair, exported):
    """4 and 8 bits of bitsandbytes, int8 of torch; encoder, projector and language model alike."""
    inputs = prompts(pair, "Which way does the red circle move?")
    load = partial(type(exported).from_pretrained, pair.folder)
    for kind, config, most in (
        ("nf4", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"), 1e-3),
        ("fp4 in bfloat16", BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16), 1e-3),
        ("8 bits", BitsAndBytesConfig(load_in_8bit=True), 2e-2),
        ("torch", None, 2e-2),
    ):
        if config is None:
            exact = load()
            model = torch.ao.quantization.quantize_dynamic(load(), {torch.nn.Linear}, dtype=torch.qint8)
        else:
            exact = load(quantization_config=config, device_map="cpu").dequantize()
            model = load(quantization_config=config, device_map="cpu")
        layers = (model.model.vision_tower.encoder.head, model.model.multi_modal_projector.linear_1)
        assert not any(type(layer) is torch.nn.Linear for layer in layers), kind
        found, expected = (m(**inputs).logits.float().flatten() for m in (model, exact))
        assert 1 - cosine_similarity(found, expected, dim=0) < most, kind
        answer = model.generate(**inputs, max_new_tokens=2, min_new_tokens=2)
        assert answer.shape[1] == inputs["input_ids"].shape[1] + 2
