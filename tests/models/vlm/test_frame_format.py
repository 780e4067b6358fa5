"""A Video LLM sees frames as its encoder did in training, whatever its checkpoint's own processor does with them."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from liteframe.data.preprocess import FrameTransform
from liteframe.frame_size import RESIZE_MODES
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.io import write_json
from liteframe.models.vlm.load import load_processor
from liteframe.toyworld.pretrain import BUILDERS

# What a checkpoint's processor may do with frames, and no encoder has seen.
ODD = {"resample": 2, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127,
       "do_normalize": False, "do_resize": False}  # fmt: skip
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 60, 211, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=BUILDERS)
def vlm(request, tmp_path_factory):
    """The folder of a tiny Video LLM without weights, whose processor has steps of its own; its mean and std."""
    folder = tmp_path_factory.mktemp(request.param)
    make_tokenizer, make_model, make_processor = BUILDERS[request.param]
    tokenizer = make_tokenizer()
    with torch.device("meta"):
        make_model(tokenizer).config.save_pretrained(folder)
    processor = make_processor(tokenizer)
    for name, value in ODD.items():
        setattr(processor.video_processor, name, value)
    processor.save_pretrained(folder)
    looks = processor.video_processor
    return folder, {"image_mean": looks.image_mean, "image_std": looks.image_std}


def encoder_folder(folder, **fields):
    config = LiteFrameConfig(
        dim=16, depth=2, heads=2, mlp_dim=32, patch_size=8, image_size=64, teacher_dim=128,
        downsample={1: (2, 2, 2), 2: (2, 1, 1)}, **fields,
    )  # fmt: skip
    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    return folder, config


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_frames_are_those_of_training(vlm, tmp_path, resize):
    source, looks = vlm
    fold = {"merge_size": 2} if resize == "aspect" else {}
    encoder, config = encoder_folder(tmp_path / "encoder", resize=resize, **looks, **fold)
    expected = FrameTransform(64, config.image_mean, config.image_std, resize, config.pixel_multiple)(FRAMES)
    assert expected.shape[-2:] == ((32, 128) if resize == "aspect" else (64, 64))
    processor = load_processor(source, encoder)
    processor.save_pretrained(tmp_path / "saved")
    for one in (processor, type(processor).from_pretrained(tmp_path / "saved")):
        assert one.resize == resize
        torch.testing.assert_close(one.pixels(FRAMES), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.pixels(one.resized(FRAMES).permute(0, 2, 3, 1)), expected, rtol=0, atol=1e-5)
        for inputs in (
            one(text=one.video_token, videos=[FRAMES]), one(text=one.image_token * 3, images=list(FRAMES))
        ):  # fmt: skip
            torch.testing.assert_close(inputs["pixel_values_videos"], expected, rtol=0, atol=1e-5)


def test_the_three_modes_show_three_different_things():
    """Else the test above could not tell them apart."""
    looks = ((0.5,) * 3, (0.5,) * 3)
    seen = [FrameTransform(64, *looks, resize, (32, 32))(FRAMES) for resize in RESIZE_MODES]
    assert (seen[0] - seen[1]).abs().mean() > 0.1
    assert seen[2].shape != seen[0].shape


def test_sizes_that_do_not_divide_into_the_projectors_tokens_are_refused(vlm, tmp_path):
    source, looks = vlm
    encoder, config = encoder_folder(tmp_path / "encoder", resize="aspect", merge_size=4, **looks)
    assert dataclasses.replace(config, merge_size=2).pixel_multiple == (32, 32)
    with pytest.raises(ValueError, match=r"multiples of \(64, 64\) pixels.*wants multiples of 32; use an encoder"):
        load_processor(source, encoder)


def test_the_checkpoints_own_processor_is_left_as_it_is(vlm):
    source, _ = vlm
    own = AutoProcessor.from_pretrained(source).video_processor
    assert (own.do_resize, own.do_center_crop, own.resample) == (False, True, 2)
