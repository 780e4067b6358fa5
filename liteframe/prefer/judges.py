"""Which of two answers to a question is the better one: by a rule, or by a command of the user's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol, cast, get_args

from liteframe.evaluate.benchmarks.base import Benchmark, Question
from liteframe.toyworld.scenes import COLOURS, DIRECTIONS, SHAPES

Verdict = Literal["chosen", "rejected", "tie", "bad"]
VERDICTS = get_args(Verdict)
TOLD = 300  # characters of what a command said that a message repeats


class JudgeError(Exception):
    """A judge gave no verdict; `kind` is counted, the message says what happened."""

    def __init__(self, kind: Literal["failed", "hung", "nonsense"], reason: str):
        super().__init__(reason)
        self.kind = kind


class Judge(Protocol):
    """Compares two answers."""

    def prefer(self, question: Question, facts: str, chosen: str, rejected: str) -> Verdict:
        """Which answer is the better one; "tie" where none is, "bad" where no pair should be made of this question.

        Raises:
            JudgeError: there is no verdict.
        """
        ...


class ExactJudge:
    """Knows the answer: a pair is a right chosen one and a wrong rejected one, by the rule of `liteframe eval`."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark

    def prefer(self, question: Question, facts: str, chosen: str, rejected: str) -> Verdict:
        """See Judge; "bad" where both are wrong."""
        return verdict(*(self.benchmark.reply_is_right(question, reply) for reply in (chosen, rejected)))


class ToyworldJudge:
    """Knows the answer and its words: of those of its kind a right reply holds it alone, and any reply holds one."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.kinds = [set(COLOURS), set(SHAPES), set(DIRECTIONS)]

    def prefer(self, question: Question, facts: str, chosen: str, rejected: str) -> Verdict:
        """See Judge; "bad" also where a reply names nothing.

        Raises:
            ValueError: the answer is none of toyworld's.
        """
        words = next((words for words in self.kinds if question.answer in words), None)
        if words is None:
            raise ValueError(
                f"question {question.id}: {question.answer!r} is no answer of toyworld; choose --judge exact"
            )
        named = [words & set(re.findall(r"\w+", reply.lower())) for reply in (chosen, rejected)]
        return verdict(*(found == {question.answer} for found in named)) if all(named) else "bad"


class CommandJudge:
    """Asks a command, once a pair, such as one that asks a language model.

    It reads `{"question", "answer", "facts", "chosen", "rejected"}` as JSON and writes one word: chosen, rejected, tie
    or bad. `answer` and `facts` are empty where the questions have none.

    Args:
        words: of the command line.
        deadline: seconds that it may take; then it is killed, with all that it has started.

    Raises:
        ValueError: there is no such command.
    """

    def __init__(self, words: Sequence[str], deadline: float) -> None:
        if not words or shutil.which(words[0]) is None:
            raise ValueError(f"--judge-command {' '.join(words)!r}: there is no such command")
        if not deadline > 0:
            raise ValueError(f"--judge-deadline {deadline}: a positive number of seconds is needed")
        self.words, self.deadline = list(words), deadline

    def prefer(self, question: Question, facts: str, chosen: str, rejected: str) -> Verdict:
        """See Judge."""
        asked = {"question": question.text, "answer": question.answer, "facts": facts}
        said = self._run(json.dumps({**asked, "chosen": chosen, "rejected": rejected}))
        word = said.strip().strip(".\"'`").lower()
        if word not in VERDICTS:
            raise JudgeError("nonsense", f"it said {said.strip()[:TOLD]!r}; expected one of {', '.join(VERDICTS)}")
        return cast(Verdict, word)

    def _run(self, asked: str) -> str:
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                self.words, stdin=pipe, stdout=pipe, stderr=pipe, errors="replace", start_new_session=True
            )
        except OSError as error:
            raise JudgeError("failed", str(error)) from error
        with process:
            try:
                said, told = process.communicate(asked, self.deadline)
            except BaseException as error:
                _kill_group(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise JudgeError("hung", f"it took longer than {self.deadline:g} s") from None
                raise
        if process.returncode:
            raise JudgeError("failed", f"it ended with {process.returncode}: {told.strip()[-TOLD:]}")
        return said


def verdict(chosen_is_right: bool, rejected_is_right: bool) -> Verdict:
    """Of two answers that are right or wrong."""
    if chosen_is_right == rejected_is_right:
        return "tie" if chosen_is_right else "bad"
    return "chosen" if chosen_is_right else "rejected"


JUDGES: dict[str, Callable[[Benchmark], Judge]] = {"exact": ExactJudge, "toyworld": ToyworldJudge}


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End a command and what it has started, which may hold its output open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
