"""The folder of one evaluation: settings.json, answers.jsonl (a line a question, as it is answered), scores.json.

Questions that have a reply are not asked again; those whose video could not be read are, and their last line counts.
Of several processes, each but the first writes to a file of its own, answers.1.jsonl and so on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.table import Table

from liteframe.evaluate.asking import Group, Reply, span_of
from liteframe.evaluate.benchmarks.base import Benchmark, Question, Result, by_group, share_of
from liteframe.evaluate.intervals import METHOD, Share
from liteframe.evaluate.shares import LOCK, Shares
from liteframe.files import check_output, write_json
from liteframe.journal import Journal
from liteframe.texts import parse_json, read_json


def answer_row(benchmark: Benchmark, reply: Reply, seed: int) -> dict[str, Any]:
    """A line of answers.jsonl: the reply and how it was read, or why there is none."""
    question = reply.question
    row: dict[str, Any] = {"id": question.id, "video": question.video, "answer": question.answer}
    if reply.text is None:
        return {**row, "reply": None, "right": False, "error": None if reply.error is None else reply.error.to_dict()}
    choice = benchmark.choice(question, reply.text, seed)
    right = benchmark.right(question, choice)
    row |= {"reply": reply.text, "choice": choice, "right": right}
    row |= {"frames": reply.frames, "tokens": reply.tokens, "fps": reply.fps}
    watched = {"seen_until": reply.seen_until, "seconds": reply.seconds}
    return row | {name: value for name, value in watched.items() if value is not None}


def score_report(
    benchmark: Benchmark, questions: Sequence[Question], rows: dict[str, dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Everything that is reported about a whole run.

    Args:
        benchmark: whose questions these are.
        questions: all of them, each with its row.
        rows: lines of answers.jsonl by question id.
        seed: of guesses.

    Returns:
        JSON-ready: accuracy with interval and count (a video that could not be read is a wrong answer), `of_read` (the
        same over readable videos; None if there are none), `failed` (questions without a readable video, by kind),
        `unanswered` (replies in which the rule finds nothing), `metrics`, `groups`, `read` (frames and tokens of a
        question, mean and most), `tokens_per_second` (of the video that was looked at, mean over replies; None where no
        rate is known), `constants` (what replies that never look reach, where the benchmark has such), and how the
        figures were made.
    """
    results = [Result(question, rows[question.id].get("reply")) for question in questions]
    read = [result for result in results if result.reply is not None]

    def right(question: Question, reply: str) -> bool:
        return benchmark.reply_is_right(question, reply, seed)

    names = dict.fromkeys(name for question in questions for name in question.groups)
    kinds = Counter(rows[r.question.id]["error"]["kind"] for r in results if r.reply is None)
    rates = [row["tokens"] / row["frames"] * row["fps"] for row in rows.values() if row.get("fps") and row["frames"]]
    metrics = benchmark.metrics(results, seed)
    return {
        "benchmark": benchmark.name,
        "headline": benchmark.headline or "accuracy",
        **asdict(share_of(results, right)),
        "of_read": asdict(share_of(read, right)) if read else None,
        "failed": {"questions": len(results) - len(read), "kinds": dict(kinds)},
        "unanswered": sum(benchmark.choice(r.question, r.reply or "", seed) == "" for r in read),
        "tokens_per_second": sum(rates) / len(rates) if rates else None,
        "metrics": {name: {"meaning": metric.meaning, **asdict(metric.share)} for name, metric in metrics.items()},
        "groups": {
            name: {part: asdict(share_of(some, right)) for part, some in by_group(results, name).items()}
            for name in names
        },
        "read": {
            name: {"mean": sum(counts) / len(counts), "most": max(counts)}
            for name in ("frames", "tokens")
            if (counts := [rows[r.question.id][name] for r in read if name in rows[r.question.id]])
        },
        **_constants(benchmark, questions, seed),
        "rule": benchmark.rule,
        "interval": METHOD,
    }


def _constants(benchmark: Benchmark, questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Accuracy by task of each reply that never looks, and what the best one of each task makes together."""
    replies = [benchmark.constants(question) for question in questions]
    if not any(replies):
        return {}
    tasks: dict[str, list[tuple[Question, dict[str, str]]]] = {}
    for question, named in zip(questions, replies, strict=True):
        tasks.setdefault(question.groups.get("task", "all"), []).append((question, named))
    shares: dict[str, dict[str, float]] = {}
    for task, asked in tasks.items():
        names = dict.fromkeys(name for _, named in asked for name in named)
        right = {name: [benchmark.reply_is_right(q, named.get(name, ""), seed) for q, named in asked] for name in names}
        shares[task] = {name: sum(found) / len(asked) for name, found in right.items()}
    best = {task: max(named, key=named.__getitem__) for task, named in shares.items()}
    results = [Result(q, named.get(best[task], "")) for task, asked in tasks.items() for q, named in asked]
    metrics = {name: metric.share.accuracy for name, metric in benchmark.metrics(results, seed).items()}
    pooled = share_of(results, lambda question, reply: benchmark.reply_is_right(question, reply, seed)).accuracy
    headline = benchmark.headline or "accuracy"
    reached = {"accuracy": pooled, **metrics}
    together = {headline: reached[headline]} if headline in reached else {"accuracy": pooled}
    return {"constants": {"tasks": shares, "best": best, "best of each task": together}}


def score_table(report: dict[str, Any], title: str) -> Table:
    """A report of `score_report` as a table: accuracy in %, interval and counts, whole and by group."""
    table = Table(title=title)
    table.add_column("")
    for column in ("%", "95 % interval", "questions", "videos"):
        table.add_column(column, justify="right")

    def row(name: str, values: dict[str, Any], **style: Any) -> None:
        share = Share(**{key: values[key] for key in ("accuracy", "low", "high", "count", "videos")})
        interval = f"{100 * share.low:.1f} to {100 * share.high:.1f}"
        table.add_row(name, f"{100 * share.accuracy:.1f}", interval, str(share.count), str(share.videos), **style)

    row("accuracy", report, style="bold")
    if report["failed"]["questions"] and report["of_read"]:
        row("accuracy, readable videos only", report["of_read"])
    for name, values in report["metrics"].items():
        row(name, values, style="bold" if name == report["headline"] else None)
    for name, parts in report["groups"].items():
        table.add_section()
        for part, values in parts.items():
            row(f"{name}: {part}", values)
    if constants := report.get("constants"):
        table.add_section()
        for task, name in constants["best"].items():
            accuracy = constants["tasks"][task][name]
            table.add_row(f"constant reply, {task}: {name!r}", f"{100 * accuracy:.1f}", "", "", "")
        for name, accuracy in constants["best of each task"].items():
            table.add_row(f"constant replies, {name}", f"{100 * accuracy:.1f}", "", "", "")
    return table


FORMAT = 1
AGAIN = "remove this line, and it is asked again"


def check_folder(path: Path, option: str = "-o") -> dict[str, Any] | None:
    """Settings of the run that a folder holds, None if it holds none; for before the model is loaded, too.

    Raises:
        ValueError: it holds something else, or nothing can be written there.
    """
    check_output(path, folder=True)
    file = path / "settings.json"
    if file.is_file():
        return read_json(file, "name another folder")
    if path.is_dir() and any(item.name != LOCK for item in path.iterdir()):
        raise ValueError(f"{option} {path} holds other files and no settings.json; name another folder")
    return None


def joined_settings(
    path: Path, settings: dict[str, Any], session: dict[str, Any] | None, option: str = "-o"
) -> dict[str, Any]:
    """What settings.json of a folder is to hold: of a new one, or of one that was begun with the same settings.

    Args:
        path: the folder.
        settings: everything that determines the scores, JSON-able.
        session: where, when and with which command this run goes; kept, not compared. None keeps none.
        option: that named the folder, for messages.

    Raises:
        ValueError: the folder was begun with other settings (they are named), or holds something else.
    """
    before = check_folder(path, option)
    settings, sessions = {"format": FORMAT, **settings}, [] if session is None else [session]
    if before is not None:
        sessions = [*before.pop("sessions"), *sessions]
        _refuse_other_settings(f"{option} {path}", before, json.loads(json.dumps(settings)))
    return {**settings, "sessions": sessions}


class EvalFolder:
    """Opens a new folder, or one that was begun with the same settings.

    Args:
        path: the folder.
        settings: everything that determines the scores, JSON-able.
        session: where, when and with which command this run goes; kept, not compared.
        rank: of several processes, which this is.

    Attributes:
        rows: the last line of each question, by id, whichever process wrote it; one with a reply counts more.

    Raises:
        ValueError: as of joined_settings, or the folder is in use.
    """

    def __init__(self, path: Path, settings: dict[str, Any], session: dict[str, Any], rank: int = 0):
        self.path = path
        self.answers, self.scores = path / "answers.jsonl", path / "scores.json"
        values = joined_settings(path, settings, None if rank else session)
        path.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self.answers.with_suffix(f".{rank}.jsonl") if rank else self.answers)
        write_json(path / "settings.json", values)
        self.rows: dict[str, dict[str, Any]] = {}
        self._tried = set[str]()  # since this process began
        self._read_to = dict[Path, tuple[int, int]]()  # bytes and lines of each file
        self.refresh()
        self._tried.clear()

    def append(self, row: dict[str, Any]) -> None:
        """Keep the outcome of one question."""
        self._journal.append(row)
        self._take(row, str(self._journal.path))

    def todo(self, questions: Sequence[Question]) -> list[Question]:
        """Those without a reply, but for what has been tried by now."""
        return [q for q in questions if self.rows.get(q.id, {}).get("reply") is None and q.id not in self._tried]

    def refresh(self) -> None:
        """Read what other processes have written by now."""
        for file in sorted(self.path.glob("answers*.jsonl")):
            start, number = self._read_to.get(file, (0, 0))
            with file.open("rb") as lines:
                lines.seek(start)
                fresh = lines.read()
            fresh = fresh[: fresh.rfind(b"\n") + 1]  # the next line may be half there
            self._read_to[file] = (start + len(fresh), number + fresh.count(b"\n"))
            for at, line in enumerate(fresh.split(b"\n"), number + 1):
                if line.strip():
                    self._take(parse_json(line, where := f"{file}:{at}", AGAIN), where)

    def sync(self) -> None:
        """Make what was appended survive a loss of power."""
        self._journal.sync()

    def __enter__(self) -> EvalFolder:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.close()

    def _take(self, row: dict[str, Any], where: str) -> None:
        try:
            name, before = row["id"], self.rows.get(row["id"], {})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: no line of an evaluation ({error}); {AGAIN}") from error
        self._tried.add(name)
        if row.get("reply") is not None or before.get("reply") is None:
            self.rows[name] = row


def taker(
    shares: Shares,
    folders: Mapping[str, EvalFolder],
    questions: Sequence[Question],
    first: int = 0,
    key: Callable[[Question], Hashable] = span_of,
) -> Callable[[Group], Group]:
    """What `ask_all` needs so that no video is asked about by two processes.

    Args:
        shares: that the processes have in common.
        folders: of all systems, by name.
        questions: all of them, the same for all processes.
        first: place of the first video.
        key: which questions are asked together.
    """
    places = {span: first + n for n, span in enumerate(dict.fromkeys(map(key, questions)))}

    def take(group: Group) -> Group:
        if not shares.take(places[key(next(iter(group.values()))[0])]):
            return {}
        for name in group:
            folders[name].refresh()
        left = {name: folders[name].todo(asked) for name, asked in group.items()}
        return {name: asked for name, asked in left.items() if asked}

    return take


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `outer.inner` -> value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _refuse_other_settings(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = _flatten(before), _flatten(now)
    other = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if other:
        named = "; ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in other)
        raise ValueError(f"{where} was begun with other settings: {named}. Use the former ones or another folder")
