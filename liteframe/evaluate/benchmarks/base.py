"""What every benchmark has in common: its questions, how a reply is read, and what is reported beside the accuracy."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from liteframe.evaluate.intervals import Share, share
from liteframe.evaluate.letters import ranked_letter

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PLACES = ("question", "options", "subtitles")


@dataclass(frozen=True)
class Question:
    """One question about one video.

    Attributes:
        id: unique within the benchmark.
        video: path of the file, which may be missing.
        text: the question, without its options where these are known apart.
        answer: the right option's letter, or the right words where there are no options.
        options: texts of the options, without letters; empty where the text holds them, or there are none.
        letters: the letters one may choose; empty for free-form answers.
        groups: what accuracy is broken down by, such as {"duration": "short"}.
        start: start of the span in seconds; None is the video's.
        end: end of the span in seconds; None is the video's.
        subtitles: path of a subtitle file.
        subtitle_shift: seconds to take off the subtitles' times.
    """

    id: str
    video: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    letters: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None
    subtitles: str | None = None
    subtitle_shift: float = 0.0


@dataclass(frozen=True)
class StreamQuestion(Question):
    """A question that is asked while a video runs: at `end`, about what was shown from `start` on.

    Attributes:
        kind: of its answer: "letter", "count", "yesno" or "proactive".
        task: whose prompt it has, where a benchmark has several.
        item: the record that it is of, where one is asked again and again; else "".
        polls: seconds at which a proactive question's model is asked whether it is time to answer.
        poll: what it is asked then.
    """

    kind: str = "letter"
    task: str = ""
    item: str = ""
    polls: tuple[float, ...] = ()
    poll: str = ""


@dataclass(frozen=True)
class Dataset:
    """Questions in the benchmark's order, and the annotation files they came from."""

    questions: tuple[Question, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Result:
    """A question with its reply; None where its video could not be read."""

    question: Question
    reply: str | None


@dataclass(frozen=True)
class Metric:
    """A further way to score the same replies, and whose it is."""

    meaning: str
    share: Share


class Benchmark(ABC):
    """One benchmark. A new one has to write `load`; the rest has defaults.

    Attributes:
        name: on the command line.
        title: for people.
        layout: the files that a folder of it holds, for messages.
        prompt: what is asked: `{question}`, `{options}` and, with subtitles, `{subtitles}` are filled in. Scores shift
            by a point or two with the wording.
        subtitle_prompt: the same where subtitles are shown; None where there are none.
        option_format: how one option is written, with `{letter}` and `{text}`.
        option_separator: what stands between two options.
        max_new_tokens: longest answer.
        rule: how a letter is found in a reply, in words.
        headline: the metric that papers quote, where it is not the accuracy.
        prompts: prompts by task, where they differ from `prompt`.
        polls: whether it asks again and again until the model says that it is time, which only a stream can be asked.
        widens_subtitles: whether subtitle lines under 1 s count as 1 s long (LongVideoBench).
    """

    name: str
    title: str
    layout: str
    prompt: str
    subtitle_prompt: str | None = None
    option_format: str = "{letter}. {text}"
    option_separator: str = "\n"
    max_new_tokens: int = 16
    rule: str = "the letter in the most telling place (lmms-eval's rule); none is wrong"
    headline: str | None = None
    prompts: Mapping[str, str] = MappingProxyType({})
    polls: bool = False
    widens_subtitles: bool = False

    @abstractmethod
    def load(self, source: Path) -> Dataset:
        """The questions of a local copy.

        Raises:
            ValueError: it has another layout, or a broken file; names the file, the record and the remedy.
        """

    def words(self, prompts: Mapping[str, str], question: Question, subtitles: str = "") -> str:
        """What is asked, given prompts by task; that of "" is for all others."""
        task = question.task if isinstance(question, StreamQuestion) else ""
        prompt = prompts.get(task, prompts[""])
        return ask_text(prompt, question, self.option_format, subtitles, self.option_separator)

    def choice(self, question: Question, reply: str, seed: int) -> str:
        """What a reply answers, to compare with `question.answer`; "" where it answers nothing."""
        return ranked_letter(reply, question.letters)

    def right(self, question: Question, choice: str) -> bool:
        """Whether a choice is the right one."""
        return choice == question.answer

    def reply_is_right(self, question: Question, reply: str, seed: int = 0) -> bool:
        """Whether what a reply answers is right."""
        return self.right(question, self.choice(question, reply, seed))

    def metrics(self, results: Sequence[Result], seed: int) -> dict[str, Metric]:
        """Further ways to score the same replies."""
        return {}

    def constants(self, question: Question) -> dict[str, str]:
        """Replies that look at nothing, by name: what a score has to be compared with; none where nobody does so."""
        return {}


def share_of(results: Sequence[Result], right: Callable[[Question, str], bool]) -> Share:
    """Accuracy of replies by a rule; a video that could not be read is a wrong answer; clusters are videos."""
    good = [result.reply is not None and right(result.question, result.reply) for result in results]
    return share(good, [result.question.video for result in results])


def by_group(results: Sequence[Result], key: str) -> dict[str, list[Result]]:
    """Results by one of their questions' groups, sorted by name; numbers by value."""
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if key in result.question.groups:
            parts[result.question.groups[key]].append(result)
    return dict(sorted(parts.items(), key=lambda part: (float(part[0]) if part[0].isdigit() else 0.0, part[0])))


def check_prompt(prompt: str, subtitles: bool) -> None:
    """Refuse a prompt that lacks what it is for.

    Raises:
        ValueError: an unknown place in braces, no `{question}`, or no `{subtitles}` where they are to be shown.
    """
    found = re.findall(r"\{(\w*)\}", prompt)
    wanted = {"question"} | ({"subtitles"} if subtitles else set())
    if unknown := sorted(set(found) - set(PLACES)):
        raise ValueError(f"the prompt {prompt!r} has unknown places {unknown}; known: {', '.join(PLACES)}")
    if lacking := sorted(wanted - set(found)):
        raise ValueError(f"the prompt {prompt!r} lacks {{{lacking[0]}}}")


def ask_text(
    prompt: str, question: Question, option_format: str, subtitles: str = "", option_separator: str = "\n"
) -> str:
    """The prompt of one question; a line that is nothing but `{options}` goes where the question has none apart."""
    written = (option_format.format(letter=LETTERS[i], text=text) for i, text in enumerate(question.options))
    listed = option_separator.join(written)
    if not question.options:
        prompt = re.sub(r"\n?\{options\}", "", prompt)
    values = {"question": question.text, "options": listed, "subtitles": subtitles}
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], prompt)
