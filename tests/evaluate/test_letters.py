"""Letters found in replies: against lmms-eval's own functions on generated replies, and by hand."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liteframe.evaluate.benchmarks import longvideobench, video_mme
from liteframe.evaluate.letters import (
    ANSWER_PHRASES,
    first_letter,
    guess,
    letter_before_parenthesis,
    ranked_letter,
)

LMMS = Path(importlib.util.find_spec("lmms_eval").submodule_search_locations[0])


def their(file, function):
    spec = importlib.util.spec_from_file_location(file.replace("/", "_"), LMMS / f"tasks/{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


EXTRACT = their("_task_utils/mcq_extract", "extract_mcq_answer")
PIECES = [
    *("A", "B", "C", "D", "E", "a", "(A)", "(B)", "B.", "C:", "D)", "B ", " ", " ", ".", ",", "!", ":", "'", '"', "\n"),
    *(
        "Because",
        "A dog",
        "option",
        "The answer is",
        "best option is",
        "I choose",
        "Answer:",
        "the",
        "答案是",
        "(",
        ")",
    ),
    *(phrase.capitalize() for phrase in ANSWER_PHRASES),
]
replies = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)


@settings(max_examples=500, deadline=None)
@given(replies, st.sampled_from(["ABCD", "ABCDE", "AB"]))
def test_ranked_letter_is_lmms_evals(reply, letters):
    assert ranked_letter(reply, letters) == EXTRACT(reply, list(letters))


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), ("B.", "B"), ("(C)", "C"), ("C. blue", "C"), ("The answer is D.", "D"),
        ("the best option is (B) red", "B"),
        ("I think it is A", "A"), ("A dog is seen, so B", "A"), ("None of them", ""), ("", ""), ("b", ""),
        ("Because of X: C) it is", "C"), ("The answer is B because A is wrong.", "A"), ("Dogs", "D"),
    ],
)  # fmt: skip
def test_ranked_letter(reply, letter):
    assert ranked_letter(reply, "ABCD") == letter


@settings(max_examples=200, deadline=None)
@given(replies)
def test_first_letter_is_the_rule_of_longvideobench(reply):
    from lmms_eval.tasks.longvideobench.utils import parse_multi_choice_response

    found = first_letter(reply, "ABCDE", longvideobench.LEAD_INS)
    if found:
        assert parse_multi_choice_response(reply, ["Z"], {}) == found
    else:  # a random choice, of which there is one
        assert parse_multi_choice_response(reply, ["Z"], {}) == "Z"


@pytest.mark.parametrize(
    ("reply", "video_mme_letter", "longvideobench_letter"),
    [
        ("The best answer is C.", "C", "C"),
        ("Answer: C", "C", "A"),  # only one of the two takes "Answer:" off
        ("Best option: D", "B", "D"),  # a lost comma in Video-MME's list
        ("Because it is C", "B", "B"),
        ("E", "", "E"),
        ("no letter", "", ""),
    ],
)
def test_first_letter_with_the_authors_lead_ins(reply, video_mme_letter, longvideobench_letter):
    assert first_letter(reply, "ABCD", video_mme.LEAD_INS) == video_mme_letter
    assert first_letter(reply, "ABCDE", longvideobench.LEAD_INS) == longvideobench_letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [("B) green", "B"), ("(B) green", "B"), ("B", "B"), (" B ", "B"), ("green) B", ""), ("B. green", ""), ("", "")],
)
def test_letter_before_parenthesis(reply, letter):
    assert letter_before_parenthesis(reply) == letter


def test_guesses_depend_on_seed_and_question_only():
    ids = [f"q{n}" for n in range(400)]
    first = {i: guess("ABCDE", 0, i) for i in ids}
    assert first == {i: guess("ABCDE", 0, i) for i in reversed(ids)}
    assert first != {i: guess("ABCDE", 1, i) for i in ids}
    counts = [list(first.values()).count(letter) for letter in "ABCDE"]
    assert min(counts) > 50  # 80 expected, standard deviation 8
