"""A session against one forward pass of the whole prompt, through the model's own processor."""

import numpy as np
import pytest
import torch

from liteframe import StreamSession, memories
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.processor import LiteFrameProcessor

QUESTIONS = ["What colour is the circle?", "Which way does the red object move?", "What shape is the object?"]
WORDS = ["red", "left", "circle", "square"]


def offline(model, processor, video, question, new_tokens=0, system=None):
    """What the prompt as a whole gives: next-token log-probabilities and a greedy answer."""
    prompt = question_prompt(question, system)
    if isinstance(processor, LiteFrameProcessor):
        inputs = processor(text=prompt, videos=[video], return_tensors="pt")
    else:
        shown = torch.as_tensor(video).permute(0, 3, 1, 2).contiguous()
        inputs = processor(text=prompt, videos=[shown], return_tensors="pt", do_sample_frames=False)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].log_softmax(-1)
        end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        ids = model.generate(
            **inputs, do_sample=False, max_new_tokens=new_tokens or 1, eos_token_id=end, pad_token_id=0
        )
    words = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return logits[processor.tokenizer.convert_tokens_to_ids(WORDS)], words


@pytest.mark.parametrize("prefill", [False, True])
def test_answers_are_those_of_the_whole_prompt(vlm, video, prefill):
    model, processor = vlm
    session = StreamSession(model, processor, prefill=prefill)
    for start in range(0, 27, 5):
        session.add(video[start : start + 5])
    answers = set()
    for question in QUESTIONS:
        scores, words = offline(model, processor, video, question, new_tokens=5)
        torch.testing.assert_close(session.score(question, WORDS), scores, atol=1e-3, rtol=1e-4)
        answer = session.ask(question, max_new_tokens=5)
        assert (answer.text, answer.frames) == (words, 27)
        assert "".join(session.stream(question, max_new_tokens=5)).strip() == words
        answers.add(words)
    assert any(answers)
    other = StreamSession(model, processor, prefill=prefill)
    other.add(255 - video)
    assert not torch.allclose(other.score(QUESTIONS[0], WORDS), session.score(QUESTIONS[0], WORDS), atol=1e-2)


@pytest.mark.parametrize("prefill", [False, True])
def test_one_frame_and_none(vlm, video, prefill):
    model, processor = vlm
    session = StreamSession(model, processor, prefill=prefill)
    bare = session.score(QUESTIONS[0], WORDS)
    text = question_prompt(QUESTIONS[0]).replace("<video>\n", "")
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        words = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    torch.testing.assert_close(bare, words[processor.tokenizer.convert_tokens_to_ids(WORDS)], atol=1e-4, rtol=1e-4)
    session.add(video[:0])
    assert session.ask(QUESTIONS[0]).frames == session.size().bytes == 0
    for frames in (1, 9):  # a still, then a clip of which one frame is left
        session.add(video[session.frames : frames])
        scores, _ = offline(model, processor, video[:frames], QUESTIONS[0])
        torch.testing.assert_close(session.score(QUESTIONS[0], WORDS), scores, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("prefill", [False, True])
def test_a_system_message_stands_first(liteframe_vlm, video, prefill):
    session = StreamSession(*liteframe_vlm, system="Which object ?", prefill=prefill)
    session.add(video)
    scores, _ = offline(*liteframe_vlm, video, QUESTIONS[0], system="Which object ?")
    torch.testing.assert_close(session.score(QUESTIONS[0], WORDS), scores, atol=1e-3, rtol=1e-4)
    scores, _ = offline(*liteframe_vlm, video, QUESTIONS[0])
    other = session.with_system(None)
    torch.testing.assert_close(other.score(QUESTIONS[0], WORDS), scores, atol=1e-3, rtol=1e-4)


def test_times_choose_frames(liteframe_vlm, video):
    """From the first frame on, one a half second: the first at or after each."""
    session = StreamSession(*liteframe_vlm, fps=2.0)
    times = [10.0, 10.1, 10.4, 10.5, 10.9, 11.0, 13.0, 13.2, 13.5]
    session.add(video[:4], times[:4])
    session.add(video[4:9], times[4:])
    plain = StreamSession(*liteframe_vlm)
    plain.add(video[[0, 3, 5, 6, 8]])
    assert session.frames == plain.frames == 5
    assert torch.equal(session.score(QUESTIONS[0], WORDS), plain.score(QUESTIONS[0], WORDS))


def test_size_is_that_of_what_is_held(liteframe_vlm, video):
    model, _ = liteframe_vlm
    session = StreamSession(*liteframe_vlm)
    session.add(video)
    width = model.config.text_config.hidden_size
    assert session.size().tokens == 6 * 4  # six whole slots of 2x2 tokens
    waiting = 3 * 3 * 64 * 64
    assert session.size().bytes == 24 * (4 * width + 8 + 8 + 4) + 6 * 3 * 8 + 6 * 2 * 8 + 2 * 8 + waiting
    session.reset()
    assert (session.frames, session.size().tokens, session.size().bytes) == (0, 0, 0)


def test_what_cannot_be_is_refused(liteframe_vlm, video, tmp_path):
    session = StreamSession(*liteframe_vlm)
    for frames in (video[0], video.astype(np.float32), video[..., :2]):
        with pytest.raises(ValueError, match=r"expected frames \[n,H,W,3\] uint8"):
            session.add(frames)
    with pytest.raises(ValueError, match="2 times in ascending order"):
        session.add(video[:2], [1.0, 0.5])
    with pytest.raises(ValueError, match="all finite"):
        session.add(video[:2], [1.0, float("nan")])
    session.add(video[:2], [5.0, 5.2])
    with pytest.raises(ValueError, match=r"fall back to 0.0 s after 5.000 s; .*reset\(\)"):
        session.add(video[:1], [0.0])
    session.reset()
    session.add(video[:1], [0.0])
    with pytest.raises(ValueError, match="fps=0"):
        StreamSession(*liteframe_vlm, fps=0)
    with pytest.raises(ValueError, match=r"the system message holds '<\|im_end\|>'"):
        StreamSession(*liteframe_vlm, system="<|im_end|>")
    with pytest.raises(ValueError, match="the question holds '<video>'"):
        session.ask("What is <video>?")
    with pytest.raises(ValueError, match="the question holds half of a character, or bytes that are not UTF-8"):
        session.ask("What is caf\udce9?")
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        session.ask("What?", max_new_tokens=0)
    with pytest.raises(ValueError, match="use fewer frames"):
        session.ask("What?", max_new_tokens=10**6)
    with pytest.raises(ValueError, match="tokens of their own"):
        session.score("What?", ["red", "red circle"])
    with pytest.raises(ValueError, match="no such file"):
        session.load(tmp_path / "none")
    (tmp_path / "other").write_bytes(b"no session")
    with pytest.raises(ValueError, match="is no saved session"):
        session.load(tmp_path / "other")
    session.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"fps 1\.0, this session has 2"):
        StreamSession(*liteframe_vlm, fps=2.0).load(tmp_path / "saved")


def test_prefill_needs_a_memory_that_only_appends(liteframe_vlm):
    memory = memories["all"]()
    memory.append_only = False
    with pytest.raises(ValueError, match="only appends"):
        StreamSession(*liteframe_vlm, memory, prefill=True)
