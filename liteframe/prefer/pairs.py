"""From questions about a user's own videos to preference pairs, with a count of what every filter takes away."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from liteframe.answer.generate import check_text
from liteframe.answer.session import StreamSession
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.evaluate.asking import Asking, System, VideoFrames, read_video
from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Question
from liteframe.evaluate.benchmarks.own_questions import FreeForm, MultipleChoice, has_options, normalize
from liteframe.evaluate.benchmarks.records import rows_of, text_field
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.prefer.judges import Judge, JudgeError
from liteframe.prefer.views import KINDS, NoViewsError, span_slots

KEPT, FAILED = "kept", "judge failed"
VERDICTS = {"rejected": "judge: the rejected answer is better", "tie": "judge: a tie", "bad": "judge: no pair"}
MOST_JUDGE_FAILURES = 5  # without a verdict between; then the judge is at fault, not the pair


class OpenQuestions(FreeForm):
    """Rows as of FreeForm that may lack an answer: a judge that is a command may know better."""

    layout = "a JSONL file with video (relative to the file) and question in each line"
    needs_answer = False


@dataclass(frozen=True)
class Questions:
    """Questions to make pairs of, whose they are, and what the judge is told about each, by id."""

    benchmark: Benchmark
    dataset: Dataset
    facts: Mapping[str, str]

    @classmethod
    def load(cls, source: Path, *, labelled: bool) -> Questions:
        """Read a JSONL file as `liteframe eval` does; `facts` of a row is a text for the judge.

        Args:
            source: of the questions.
            labelled: whether each must have its answer.

        Raises:
            ValueError: a row is broken or lacks something; names file, line and remedy.
        """
        benchmark = MultipleChoice() if has_options(source) else FreeForm() if labelled else OpenQuestions()
        dataset = benchmark.load(source)
        rows = zip(dataset.questions, rows_of(source), strict=True)
        facts = {q.id: text_field(row, where, "facts") for q, (where, row) in rows if row.get("facts") is not None}
        return cls(benchmark, dataset, facts)


@dataclass(frozen=True)
class PairMaker:
    """How pairs are made.

    Attributes:
        system: the Video LLM that answers.
        questions: whose pairs these are.
        asking: how it is asked; frames are those of a whole video.
        judge: says which answer is better.
        seed: of what the rejected answer is about.
    """

    system: System
    questions: Questions
    asking: Asking
    judge: Judge
    seed: int

    @property
    def per_slot(self) -> int:
        """Frames that stand and fall together: those of a slot, or one where there are none."""
        processor = self.system.processor
        return processor.frames_per_slot if isinstance(processor, LiteFrameProcessor) else 1

    def attempts(self, wanted: Sequence[tuple[Question, str]]) -> Iterator[dict[str, Any]]:
        """A row for each question and kind: the pair, or what became of it in `outcome`.

        `reply` is None where another try may come to something: a video that could not be read, a judge that failed.

        Raises:
            ValueError: a prompt is too long for the language model, or the judge failed several times in a row.
        """
        by_video: dict[str, list[tuple[Question, str]]] = {}
        for question, kind in wanted:
            by_video.setdefault(question.video, []).append((question, kind))
        failures = 0
        with DecodeProcess(self.asking.deadline) as decoder:

            def read(question: Question) -> VideoFrames | VideoError:
                try:
                    return read_video(
                        self.system.encoder, decoder, replace(question, start=None, end=None), self.asking
                    )
                except VideoError as error:
                    return error

            for group, video in ahead(by_video.values(), lambda group: read(group[0][0])):
                for row in self._of_video(group, video):
                    yield row
                    if row["outcome"].startswith(FAILED):
                        failures += 1
                    elif row["outcome"] in (KEPT, *VERDICTS.values()):
                        failures = 0
                    if failures == MOST_JUDGE_FAILURES:
                        raise ValueError(
                            f"the judge gave no verdict {failures} times in a row, the last time because "
                            f"{row['error']}. Correct it and run the same command again: it goes on where it was"
                        )

    def _of_video(
        self, group: Sequence[tuple[Question, str]], video: VideoFrames | VideoError
    ) -> Iterator[dict[str, Any]]:
        sessions: dict[tuple[int, ...], StreamSession] = {}
        for question, kind in group:
            row = {"id": attempt_id(question, kind), "video": question.video, "kind": kind, "reply": None}
            if isinstance(video, VideoError):
                yield {**row, "outcome": f"video: {video.kind}", "error": str(video)}
            else:
                yield {**row, **self._attempt(question, kind, video, sessions)}

    def _attempt(
        self, question: Question, kind: str, video: VideoFrames, sessions: dict[tuple[int, ...], StreamSession]
    ) -> dict[str, Any]:
        digest = hashlib.sha256(attempt_id(question, kind).encode("utf-8", "surrogatepass")).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8])])
        span = span_slots(video.times, self.per_slot, question.start, question.end)
        try:
            views = KINDS[kind](-(-len(video.frames) // self.per_slot), span, rng)
        except NoViewsError as error:
            return {"reply": "", "outcome": str(error)}
        benchmark = self.questions.benchmark
        text = benchmark.words(self.asking.prompts_by_task, question)
        chosen, rejected = (self._answer(video, slots, question, text, sessions) for slots in views)
        row = {"reply": chosen, "rejected": rejected, "question": text, "frames": len(video.frames)}
        if normalize(chosen) == normalize(rejected):
            return {**row, "outcome": "the same answer twice"}
        if not (usable(chosen) and usable(rejected)):
            return {**row, "outcome": "an answer that is empty or holds a control token"}
        try:
            found = self.judge.prefer(
                replace(question, text=text), self.questions.facts.get(question.id, ""), chosen, rejected
            )
        except JudgeError as error:
            return {**row, "reply": None, "outcome": f"{FAILED}: {error.kind}", "error": str(error)}
        return {**row, "outcome": VERDICTS.get(found, KEPT)}

    def _answer(
        self,
        video: VideoFrames,
        slots: Sequence[int],
        question: Question,
        text: str,
        sessions: dict[tuple[int, ...], StreamSession],
    ) -> str:
        """The greedy answer of a model that sees these slots, as if they were the whole video."""
        whole = list(slots) == list(range(-(-len(video.frames) // self.per_slot)))
        session = sessions.get(tuple(slots))
        if session is None:
            parts = [video.frames[slot * self.per_slot : (slot + 1) * self.per_slot] for slot in slots]
            frames = np.concatenate(parts)
            session = self.system.look(frames, video.times[: len(frames)])
            if whole:  # all questions share it
                sessions[tuple(slots)] = session
        try:
            return session.ask(text, max_new_tokens=self.asking.max_new_tokens).text.strip()
        except ValueError as error:
            raise ValueError(f"question {question.id}: {error}") from error


def attempt_id(question: Question, kind: str) -> str:
    """What a try at a pair is known by."""
    return f"{question.id}/{kind}"


def pair_rows(
    questions: Sequence[Question], kinds: Sequence[str], rows: Mapping[str, dict[str, Any]], facts: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The pairs that were kept, in the order of the questions, for `liteframe prefer fit`.

    Args:
        questions: all of them.
        kinds: of the pairs.
        rows: of PairMaker.attempts, by id.
        facts: that all pairs share.
    """
    found = ((q, kind, rows[attempt_id(q, kind)]) for q in questions for kind in kinds)
    return [
        {
            "id": row["id"],
            "video": str(Path(q.video).resolve()),
            "frames": row["frames"],
            "question": row["question"],
            "chosen": row["reply"],
            "rejected": row["rejected"],
            "kind": kind,
            "span": None if q.start is None and q.end is None else [q.start, q.end],
            **facts,
        }
        for q, kind, row in found
        if row["outcome"] == KEPT
    ]


def count(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How many tries there were, what was kept of each kind, and what was dropped for which reason."""
    outcomes = [(row["outcome"], row["kind"]) for row in rows]
    dropped = Counter(outcome for outcome, _ in outcomes if outcome != KEPT)
    kept = Counter(kind for outcome, kind in outcomes if outcome == KEPT)
    return {"tried": len(outcomes), "kept": kept.total(), "by_kind": dict(kept), "dropped": dict(dropped.most_common())}


def usable(answer: str) -> bool:
    """Whether an answer can be learned."""
    try:
        check_text(answer, "answer")
    except ValueError:
        return False
    return bool(answer)


def ahead(items: Iterable[Any], make: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Each item with what is made of it; the next one is made meanwhile."""
    waiting: tuple[Any, Future[Any]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            following = item, pool.submit(make, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()
