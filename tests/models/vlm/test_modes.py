"""A Video LLM with an elastic encoder: in a mode it is the one with the extracted encoder, and which mode `auto` is."""

import pytest
import torch
from worlds.students import make_student, student_config
from worlds.vlms import answer_about, make_internvl

from liteframe import load_video_llm
from liteframe.models.student.elastic import standard_modes
from liteframe.models.vlm.load import load_processor
from liteframe.models.vlm.modes import AROUND, check_mode, find_mode, video_tokens

MODES = standard_modes({1: (2, 2, 2), 2: (2, 1, 1)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Video LLM, and below `encoder` an elastic encoder, with each of its modes in a folder of its name."""
    folder = tmp_path_factory.mktemp("modes")
    make_internvl(folder / "vlm")
    elastic = make_student(student_config(modes=MODES))
    elastic.save_pretrained(folder / "encoder")
    for mode in ("8x", "32x", "64x"):
        elastic.extract(mode).save_pretrained(folder / mode)
    return folder


@pytest.mark.parametrize("mode", ["8x", "64x"])
def test_a_mode_is_the_extracted_encoder(world, mode, frames):
    shown = frames(13)
    model, processor = load_video_llm(world / "vlm", encoder=world / "encoder", mode=mode)
    expected, of_extracted = load_video_llm(world / "vlm", encoder=world / mode)
    assert model.config.to_dict() == expected.config.to_dict()
    assert processor.slots(13, 64, 64) == of_extracted.slots(13, 64, 64)
    assert all(
        torch.equal(weight, dict(expected.named_parameters())[name]) for name, weight in model.named_parameters()
    )
    answers = [
        answer_about(*pair, shown, "what?", max_new_tokens=4) for pair in ((model, processor), (expected, of_extracted))
    ]
    assert answers[0] == answers[1]


def test_videos_of_several_modes_are_encoded_each_in_its_own(world, frames):
    model, processor = load_video_llm(world / "vlm", encoder=world / "encoder")
    videos, modes = (
        [processor.resized(frames(count, seed=count)) for count in (8, 3, 11, 8)],
        ["8x", "64x", "8x", "64x"],
    )
    pixels = torch.cat(videos)
    with torch.no_grad():
        made = model.model.get_video_features(pixels, [8, 3, 11, 8], modes=modes).pooler_output
        own = model.model.get_video_features(pixels, [8, 3, 11, 8]).pooler_output
    for video, mode, features in zip(videos, modes, made, strict=True):
        alone, its = load_video_llm(world / "vlm", encoder=world / mode)
        with torch.no_grad():
            expected = alone.model.get_video_features(video).pooler_output[0]
        assert len(features) == sum(slot.tokens for slot in its.slots(len(video), 64, 64))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert [len(features) for features in own] == [2 * 4, 4, 3 * 4, 2 * 4]  # 16x


def test_an_elastic_model_is_not_saved(world, tmp_path):
    model, _ = load_video_llm(world / "vlm", encoder=world / "encoder")
    with pytest.raises(ValueError, match=r"elastic, with modes 4x, 8x, 16x, 32x, 64x.*liteframe extract"):
        model.save_pretrained(tmp_path / "out")


def test_auto_is_the_finest_that_fits(world):
    """Tokens counted by the processors of the extracted encoders; at 64 pixels, text makes 64x longer than 32x."""
    parts = (str(world / "vlm"), str(world / "encoder"))
    tokens = {mode: video_tokens(load_processor(parts[0], world / mode), 64) for mode in ("8x", "32x", "64x")}
    assert tokens["32x"] < tokens["64x"]
    room = 8192 - AROUND  # of toyworld's language model

    def found(mode, frames=64, words=0, answer=0):
        return find_mode(mode, *parts, frames=frames, words=words, answer=answer)

    assert found(f"auto:{tokens['8x']}") == "8x"
    assert found(f"auto:{tokens['8x'] - 1}") == "16x"
    assert found(f"auto:{tokens['32x']}") == "32x"
    assert found("auto") == "4x"
    assert found("auto", words=room - tokens["8x"] - 5, answer=5) == "8x"
    assert found("auto", words=room - tokens["8x"] - 5, answer=6) == "16x"
    assert (found("32x"), found(None)) == ("32x", None)
    least = tokens["32x"] - 1
    with pytest.raises(
        ValueError, match=rf"auto:{least}: with 64 frames, no mode .* 32x {least + 1}, 64x .*fewer --frames"
    ):
        found(f"auto:{least}")
    with pytest.raises(ValueError, match="a stream has none: name a mode"):
        found("auto", frames=None)


@pytest.mark.parametrize(
    ("mode", "encoder", "words"),
    [
        ("9x", "encoder", "--mode 9x, .*encoder: mode '9x' is unknown: this encoder has 4x, 8x, 16x, 32x, 64x"),
        ("8x", "8x", "--mode 8x, .*8x: this encoder has one compression.*liteframe upgrade"),
        ("auto", "8x", "this encoder has one compression"),
        ("auto:0", "encoder", "a budget is a number of tokens of at least 1"),
        ("auto:many", "encoder", "a budget is a number of tokens"),
        ("8x", None, "name one with --encoder"),
    ],
)
def test_what_is_no_mode_is_refused_by_name(world, mode, encoder, words):
    with pytest.raises(ValueError, match=words):
        check_mode(mode, encoder and world / encoder)


def test_a_mode_needs_an_encoder(world):
    with pytest.raises(ValueError, match="mode '8x' is one of an elastic encoder: name the encoder, too"):
        load_video_llm(world / "vlm", mode="8x")
