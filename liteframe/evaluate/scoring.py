"""Score short answers: exact match after normalizing, accuracy with its standard error, whole and by question type."""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers; `error` is the binomial standard error, `count` the number of questions."""

    accuracy: float
    error: float
    count: int

    @classmethod
    def of(cls, right: Sequence[bool]) -> Accuracy:
        """From one truth value a question; at least one."""
        if not right:
            raise ValueError("no questions to score: the list is empty")
        share = sum(right) / len(right)
        return cls(share, math.sqrt(share * (1 - share) / len(right)), len(right))


def normalize(answer: str) -> str:
    """Lower case, without punctuation at the ends and without doubled spaces."""
    return " ".join(answer.lower().split()).strip(string.punctuation + " ")


def is_right(answer: str, expected: str) -> bool:
    """Whether two answers are the same words."""
    return normalize(answer) == normalize(expected)


def score(rows: Sequence[dict[str, Any]], answers: Sequence[str]) -> dict[str, Any]:
    """Score answers to rows of `question`, `answer` and optional `type`.

    Returns:
        A JSON-ready dict: `accuracy`, `error`, `count`, and `types` with the same three for each type.

    Raises:
        ValueError: when there is not one answer for each row, or none at all.
    """
    if len(rows) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(rows)} questions: give one answer for each")
    right = [is_right(answer, row["answer"]) for row, answer in zip(rows, answers, strict=True)]
    kinds: dict[str, list[bool]] = defaultdict(list)
    for row, good in zip(rows, right, strict=True):
        kinds[row.get("type", "all")].append(good)
    return {
        **asdict(Accuracy.of(right)),
        "types": {kind: asdict(Accuracy.of(values)) for kind, values in sorted(kinds.items())},
    }
