"""Encoding overlapped with prefill gives the cache, and the answer, of the plain way."""

import threading
import time

import numpy as np
import pytest
import torch
from worlds import ROOT
from worlds.ctd import write_video
from worlds.students import make_student, student_config

from liteframe.answer.ask import ask
from liteframe.answer.generate import answer
from liteframe.answer.session import prefill_overlapped
from liteframe.data.video.process import DecodeProcess
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

QUESTION = "Which way does the red circle move?"


@pytest.fixture(scope="module")
def pair():
    _, processor = load_video_llm(ROOT / "liteframe/toyworld/checkpoint")
    mean, std = processor.video_processor.image_mean, processor.video_processor.image_std
    encoder = make_student(student_config(dim=32, image_mean=tuple(mean), image_std=tuple(std)))
    return load_video_llm(ROOT / "liteframe/toyworld/checkpoint", encoder=encoder)


@pytest.fixture(scope="module")
def video():
    return np.random.default_rng(0).integers(0, 256, (27, 64, 64, 3), dtype=np.uint8)


def test_ask_reads_a_file_clip_by_clip(pair, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=40, fps=8, seed=3)
    with DecodeProcess() as decoder:
        shown = decoder.read(path, [2, 6, 10, 14, 18, 22, 26, 30, 34, 38])
    words = "".join(ask(*pair, path, QUESTION, frames=10, max_new_tokens=8, overlap=True))
    assert words.strip() == answer(*pair, shown, QUESTION, max_new_tokens=8)[0]


def cut(video, size=8):
    return [video[i : i + size] for i in range(0, len(video), size)]


def test_logits_and_answer_are_those_of_the_plain_way(pair, video):
    model, processor = pair
    ready = prefill_overlapped(model, processor, cut(video), len(video), QUESTION)
    inputs = processor(text=question_prompt(QUESTION), videos=[video], return_tensors="pt")
    assert torch.equal(ready["input_ids"], inputs["input_ids"])
    assert ready["past_key_values"].get_seq_length() == inputs["input_ids"].shape[1] - 1
    with torch.inference_mode():
        plain = model(**inputs).logits[:, -1]
        last = model.lm_head(
            model.model.language_model(
                ready["input_ids"][:, -1:], past_key_values=ready["past_key_values"]
            ).last_hidden_state
        )[:, -1]
    assert (plain - last).abs().max() < 1e-4 * plain.abs().max()

    ready = prefill_overlapped(model, processor, cut(video), len(video), QUESTION, max_new_tokens=8)
    ids = model.generate(**ready)
    words = processor.tokenizer.decode(ids[0, ready["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert words == answer(model, processor, video, QUESTION, max_new_tokens=8)[0]
    assert words


def test_prefill_starts_before_the_last_clip_is_read(pair, video, monkeypatch):
    model, processor = pair
    started = threading.Event()
    original = model.model.language_model.forward
    monkeypatch.setattr(model.model.language_model, "forward", lambda *a, **k: (started.set(), original(*a, **k))[1])

    def slowly():
        first, *rest = cut(video)
        yield first
        assert started.wait(20), "the language model waited for the whole video"
        yield from rest

    prefill_overlapped(model, processor, slowly(), len(video), QUESTION)


@pytest.mark.parametrize(("said", "message"), [(26, "more than"), (40, "fewer than")])
def test_wrong_number_of_frames(pair, video, said, message):
    before = threading.active_count()
    clips = cut(video) if said > len(video) else [*cut(video), *cut(video)]
    with pytest.raises(ValueError, match=message):
        prefill_overlapped(*pair, clips, said, QUESTION)
    time.sleep(0.01)
    assert threading.active_count() == before


def test_errors_of_the_reader_reach_the_caller(pair, video):
    def broken():
        yield video[:8]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        prefill_overlapped(*pair, broken(), len(video), QUESTION)


def test_too_long_for_the_context(pair, video):
    with pytest.raises(ValueError, match="use fewer frames"):
        prefill_overlapped(*pair, cut(video), len(video), QUESTION, max_new_tokens=10**6)
