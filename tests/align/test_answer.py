"""Several questions at once against one at a time through the processor and generate, for both kinds of Video LLM."""

import pytest

from liteframe.answer.generate import answer
from liteframe.models.vlm.chat import question_prompt
from liteframe.toyworld.model import build_processor

QUESTIONS = ["What colour is the circle?", "Which way does the red object move?", "What shape is the object?"]


@pytest.mark.parametrize("kind", ["internvl", "liteframe"])
def test_answers_equal_one_question_at_a_time(vlm, model, processor, tokenizer, frames, kind):
    chosen, prepare = (vlm, build_processor(tokenizer)) if kind == "internvl" else (model, processor)
    video = frames(10, 48, 64)
    expected = []
    for question in QUESTIONS:
        inputs = prepare(text=question_prompt(question), videos=[video], return_tensors="pt")
        ids = chosen.generate(**inputs, do_sample=False, max_new_tokens=5, eos_token_id=3, pad_token_id=0)
        expected.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    assert answer(chosen, prepare, video, QUESTIONS, max_new_tokens=5) == expected
    assert answer(chosen, prepare, video, QUESTIONS[1], max_new_tokens=5) == expected[1:2]
    assert answer(chosen, prepare, video // 2, QUESTIONS, max_new_tokens=5) != expected
