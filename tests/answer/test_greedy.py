"""Greedy is greedy: what a checkpoint's generation_config.json says besides changes no answer."""

import json

import pytest
import torch
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl, make_llava_onevision

from liteframe import StreamSession
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.processor import LiteFrameProcessor

QUESTIONS = ("What colour is the circle?", "Which way does the red object move?")
END, OTHER_END, NEW = 3, 2, 4  # <|im_end|>, <|im_start|>
PLANTED = {
    "no_repeat_ngram_size": 1, "repetition_penalty": 3.0, "encoder_repetition_penalty": 2.0, "num_beams": 3,
    "do_sample": True, "temperature": 5.0, "top_k": 3, "length_penalty": 9.0, "min_new_tokens": NEW, "max_length": 7,
    "bad_words_ids": [[n] for n in range(20, 90)], "suppress_tokens": list(range(90, 300)), "stop_strings": ["1"],
    "sequence_bias": [[[8], 50.0]], "exponential_decay_length_penalty": [1, 9.0], "forced_eos_token_id": 9,
    "renormalize_logits": True, "guidance_scale": 2.0, "begin_suppress_tokens": [100, 101],
    "prompt_lookup_num_tokens": 3, "eos_token_id": OTHER_END,
}  # fmt: skip
HALF = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
FAMILIES = {
    "internvl": (make_internvl, {}),
    "llava_onevision": (make_llava_onevision, {"image_size": 80, "teacher_dim": 32, **HALF}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def planted(request, tmp_path_factory):
    """A Video LLM with a LiteFrame encoder and one without, whose checkpoint says all that."""
    make, demands = FAMILIES[request.param]
    folder = make(tmp_path_factory.mktemp("planted") / "vlm")
    (folder / "generation_config.json").write_text(json.dumps(PLANTED))
    encoder = make_student(student_config(**demands), std=0.5)
    return {"with": load_video_llm(folder, encoder=encoder), "without": load_video_llm(folder)}


@torch.inference_mode()
def argmax_loop(model, processor, video, question):
    """Words by the whole prompt and an argmax a token; no cache, no generate."""
    if isinstance(processor, LiteFrameProcessor):
        inputs = processor(text=question_prompt(question), videos=[video])
    else:
        shown = torch.as_tensor(video).permute(0, 3, 1, 2).contiguous()
        inputs = processor(text=question_prompt(question), videos=[shown], return_tensors="pt", do_sample_frames=False)
    start = ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    while ids.shape[1] < start.shape[1] + NEW and (ids is start or ids[0, -1] not in (END, OTHER_END)):
        ids = torch.cat([ids, model(input_ids=ids, **inputs).logits[:, -1:].argmax(-1)], 1)
    return processor.tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("encoder", ["with", "without"])
def test_answers_are_those_of_an_argmax_loop(planted, video, encoder):
    model, processor = planted[encoder]
    assert model.generation_config.repetition_penalty == 3.0
    expected = [argmax_loop(model, processor, video, question) for question in QUESTIONS]
    assert any(expected)
    for prefill in (False, True):
        session = StreamSession(model, processor, prefill=prefill)
        session.add(video)
        assert [session.ask(question, max_new_tokens=NEW).text for question in QUESTIONS] == expected
        assert "".join(session.stream(QUESTIONS[0], max_new_tokens=NEW)).strip() == expected[0]
    assert model.generation_config.repetition_penalty == 3.0, "the model's own generate stays the checkpoint's"
