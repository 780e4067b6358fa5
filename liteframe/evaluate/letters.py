"""Which option a reply chooses: the rules of three harnesses, restated. All return a capital letter, or "" for none."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

# What comes before an answer in lmms-eval's rule, in English, Korean, Chinese and Japanese.
ANSWER_PHRASES = (
    *(f"{lead}{noun} is" for noun in ("answer", "choice") for lead in ("", "the ", "correct ", "the correct ", "my ")),
    *(f"{lead}{noun} is" for noun in ("answer", "option") for lead in ("best ", "the best ")),
    *(f"{lead}option is" for lead in ("correct ", "the correct ")),
    *(f"i {verb}" for verb in ("choose", "select", "pick")),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)  # fmt: skip
# How a letter may be written, and how much that weighs against other places of a reply.
WRITTEN = ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} "))
START, END, PHRASE, ANYWHERE = 10, 9, 7, 0


def ranked_letter(reply: str, letters: Sequence[str]) -> str:
    """The letter in the most telling place; of equally telling ones the last (lmms-eval's rule).

    Places by weight: alone at the start, alone at the end, after an answer phrase, `(A)`, `A.`, `A:`, `A)`, `A `, and
    only if there is none of these, anywhere. After a phrase each letter counts where it first stands, so
    "The answer is B because A ..." gives A: a flaw of the rule, kept, for numbers that compare.

    Args:
        reply: what the model said.
        letters: those of the options.
    """
    text = reply.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    bare, lower = text.strip(), text.lower()
    if not reply.strip():
        return ""
    found: list[tuple[int, int, str]] = []
    starts = [at + len(phrase) for phrase in ANSWER_PHRASES if (at := lower.find(phrase)) != -1]
    # The order within a letter and among letters settles ties of weight and place as the rule's stable sort does.
    for weight, form in WRITTEN:
        found += [(weight, text.rfind(form.format(c)), c) for c in letters if form.format(c) in text]
    found += [(PHRASE, at, c) for start in starts for c in letters if (at := text.find(c, start)) != -1]
    found += [(START, 0, c) for c in letters if bare.startswith(c) and not bare[1:2].isalpha()]
    found += [(END, len(text), c) for c in letters if bare.endswith(c) and not bare[-2:-1].isalpha()]
    found = found or [(ANYWHERE, text.rfind(c), c) for c in letters if c in text]
    return max(found, key=lambda place: place[:2])[2] if found else ""


def first_letter(reply: str, letters: Sequence[str], lead_ins: Sequence[str]) -> str:
    """The first of the letters anywhere, after removing lead-ins (Video-MME's and LongVideoBench's authors).

    "Because ..." gives B: a flaw of the rule, kept, for numbers that compare.

    Args:
        reply: what the model said.
        letters: those that the rule looks for.
        lead_ins: removed wherever they stand, one after the other.
    """
    for words in lead_ins:
        reply = reply.replace(words, "")
    match = re.search(f"[{''.join(letters)}]", reply)
    return match[0] if match else ""


def letter_before_parenthesis(reply: str) -> str:
    """What stands before the first `)`, or the whole reply, if that is one letter (the rule of MLVU's authors).

    It goes with a prompt that ends in `Best option: (`; a `(` that the model writes again does no harm.
    """
    head = reply.split(")", 1)[0].strip().removeprefix("(").strip()
    return head if re.fullmatch("[A-Z]", head) else ""


def guess(letters: Sequence[str], seed: int, question: str) -> str:
    """A random letter that depends on the seed and the question's id alone, not on the order of questions."""
    return random.Random(f"{seed}:{question}").choice(list(letters))
