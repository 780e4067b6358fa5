"""Videos watched as streams and asked meanwhile: the replies of the chunks that a question's second ends."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from worlds import ROOT
from worlds import benchmarks as samples
from worlds.students import make_student
from worlds.vlms import TRAINED, make_internvl

from liteframe.answer.memory import memories, parse_memory
from liteframe.answer.session import Answer, StreamSession
from liteframe.cli.main import main
from liteframe.data.video.sampling import as_they_come
from liteframe.data.video.timeline import Timeline
from liteframe.evaluate import online
from liteframe.evaluate.asking import Asking, System
from liteframe.evaluate.benchmarks import BENCHMARKS
from liteframe.evaluate.benchmarks.base import StreamQuestion
from liteframe.evaluate.folder import answer_row, score_report
from liteframe.evaluate.online import Watching, ask_online
from liteframe.evaluate.settings import watching_of
from liteframe.models.vlm.load import load_video_llm
from liteframe.toyworld.film_files import ANNOTATIONS, SETTINGS, VIDEOS, write_films
from liteframe.toyworld.films import FPS

OVO = BENCHMARKS["ovo-bench"]
FILM = "2_scenes_000.mp4"
TOY = str(ROOT / "liteframe/toyworld/checkpoint")
ASKING = Asking(None, 1.0, "{question} {options}", False, 3, 60.0, dict.fromkeys(("REC", "SSR", "CRR"), "{question}"))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_films(folder, scenes=(2,), films=1, seconds=1)
    return folder


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A random student of clips of 8 frames, 4 tokens a slot, in a random InternVL."""
    return System.of(*load_video_llm(make_internvl(tmp_path_factory.mktemp("vlm")), encoder=make_student(std=0.5)))


class Shelf:
    """In a decoding process's place: all videos are one film, which is in memory."""

    def __init__(self, frames, fps=FPS):
        self.frames, self.timeline = frames, Timeline.constant_rate(len(frames), fps)
        self.reads = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def probe(self, path):
        return SimpleNamespace(timeline=self.timeline, height=64, width=64)

    def read(self, path, indices, *, then=()):
        self.reads += len(indices)
        return self.frames[list(indices)]


@pytest.fixture
def shelf(monkeypatch, films):
    from liteframe.data.video.process import DecodeProcess

    with DecodeProcess() as decoder:
        frames = decoder.read(films / VIDEOS / FILM, range(128))
    found = Shelf(frames)
    monkeypatch.setattr(online, "DecodeProcess", lambda deadline: found)
    return found


def watched(system, questions, watching):
    def session():
        return watching.session(system)

    replies = ask_online(session, system.encoder, OVO, questions, ASKING, watching)
    return {reply.question.id: reply for reply in replies}


@pytest.mark.parametrize("name", memories)
def test_a_session_replies_as_one_that_begins_anew_for_each_question(films, system, shelf, name):
    """For every memory: asking changes nothing, and what comes later is not known."""
    if memories[name].trained:
        system = System.of(*TRAINED[name]((system.model, system.processor)))
    questions = [replace(q, video="one") for q in OVO.load(films).questions[::3]]
    memory = name if name == "all" else f"{name}:48"
    watching = Watching(memory, 4.0, "seconds", restart=False)
    once = watched(system, questions, watching)
    read = shelf.reads
    anew = watched(system, questions, replace(watching, restart=True))
    assert shelf.reads - read > 2 * read
    assert {id: (r.text, r.frames, r.tokens) for id, r in once.items()} == {
        id: (r.text, r.frames, r.tokens) for id, r in anew.items()
    }
    assert len({reply.text for reply in once.values()}) > 1
    for question in questions[-2:]:  # each as a session that is shown the frames of its chunk by hand
        session = StreamSession(system.model, system.processor, parse_memory(memory), fps=4, labels="seconds")
        session.add(shelf.frames[: int(FPS * question.end) : 2])
        text = OVO.words(ASKING.prompts_by_task, question)
        assert session.ask(text, max_new_tokens=3).text == once[question.id].text
        assert once[question.id].seen_until == session.last_time < question.end


@pytest.mark.parametrize("fps", [1.0, 3.0, 30.0])
def test_frames_are_those_that_a_session_would_take(system, fps):
    stamps = ((0, 0.5), (20, 3.0), (30, 7.0), (60, 8.0))
    timeline = Timeline(60, 60 / 7.5, stamps)
    frames = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2).repeat(3, 3)
    session = StreamSession(system.model, system.processor, fps=fps)
    taken = []
    original = session._intake.in_time
    session._intake.in_time = lambda times, count, every: taken.append(original(times, count, every)) or taken[-1]
    session.add(frames, [timeline.time(i) for i in range(60)])
    assert as_they_come(timeline, fps) == np.flatnonzero(taken[0]).tolist()
    assert as_they_come(timeline, fps, end=4.0) == [i for i in as_they_come(timeline, fps) if timeline.time(i) < 4.0]


class Stub:
    """A session that replies by a table, to the number of the query in the words that it is asked."""

    def __init__(self, table):
        self.table, self.frames, self.last_time = table, 0, None

    def add(self, frames, times, *, every):
        assert all(b > a for a, b in zip([self.last_time or -1, *times], times, strict=False))
        self.frames, self.last_time = self.frames + len(frames), times[-1]

    def ask(self, text, *, max_new_tokens):
        return Answer(self.table(text, self.frames), self.frames, 4 * self.frames)


def test_all_items_of_ovo_bench_through_loader_runner_and_scorer(tmp_path, system, monkeypatch):
    """1,640 made-up items of the published layout; the scores are those of a count over the file by hand."""
    items = samples.ovo_items()
    samples.write_rows(tmp_path / ANNOTATIONS, items)
    dataset = OVO.load(tmp_path)
    assert (len(items), len({q.video for q in dataset.questions})) == (1640, 644)
    assert len(dataset.questions) == 3035
    monkeypatch.setattr(online, "DecodeProcess", lambda deadline: Shelf(np.zeros((20, 64, 64, 3), np.uint8), 2))

    def table(text, frames):  # by what is asked and how much was seen: the same whatever else is asked before
        return ("A", "B", "2", "Yes", "No")[(sum(map(ord, text)) + frames) % 5]

    watching = Watching("all", 1.0, "frames", restart=False)
    asking = Asking(None, 1.0, OVO.prompt, False, 3, 60.0, OVO.prompts)
    replies = list(ask_online(lambda: Stub(table), system.encoder, OVO, dataset.questions, asking, watching))
    rows = {reply.question.id: answer_row(OVO, reply, 0) for reply in replies}
    report = score_report(OVO, dataset.questions, rows, 0)
    right = {}
    for question in dataset.questions:
        said = table(OVO.words(asking.prompts_by_task, question), int(question.end))
        assert rows[question.id]["reply"] == said
        right.setdefault(question.task, []).append(said == question.answer)
    tasks = {task: sum(found) / len(found) for task, found in right.items()}
    means = [
        sum(tasks[task] for task in names) / len(names)
        for names in (("EPM", "ASI", "HLD"), ("OCR", "ACR", "ATR", "STU", "FPD", "OJR"), ("REC", "SSR", "CRR"))
    ]
    assert report["metrics"]["total"]["accuracy"] == pytest.approx(sum(means) / 3)
    assert report["metrics"]["mean of tasks, strict"]["accuracy"] == pytest.approx(sum(tasks.values()) / 12)
    assert report["count"] == 3035
    assert report["failed"]["questions"] == 0


def test_polls_end_when_the_model_says_that_it_is_time(system, shelf):
    benchmark = BENCHMARKS["streamingbench-proactive"]
    polls = tuple(range(3, 10))
    question = StreamQuestion(
        id="1",
        video="one",
        text="Say it.",
        answer="star",
        start=2.0,
        end=9.0,
        kind="proactive",
        polls=polls,
        poll="Now?",
    )
    asked = []

    def table(text, frames):
        asked.append((text, frames))
        return ("Yes, now" if frames >= 4 else "no") if text == "Now?" else "a star"

    watching = Watching("all", 1.0, "frames", restart=False)
    (reply,) = ask_online(
        lambda: Stub(table), system.encoder, benchmark, [question], replace(ASKING, prompt="{question}"), watching
    )
    assert reply.text == "6 s: a star"
    assert asked == [("Now?", 1), ("Now?", 2), ("Now?", 3), ("Now?", 4), ("Say it.", 4)]
    (silent,) = ask_online(lambda: Stub(lambda *_: "no"), system.encoder, benchmark, [question], ASKING, watching)
    assert silent.text == "9 s:"


def run(films, out, *more):
    command = ["eval", "ovo-bench", str(films), "--vlm", TOY, "--config", str(films / SETTINGS), "-o", str(out)]
    return main([*command, *more])


STREAM = ("--online", "--memory", "window:64", "--labels", "seconds")


def rows(out):
    return {row["id"]: row for row in map(json.loads, (out / "answers.jsonl").read_text().splitlines())}


def test_a_run_is_continued_where_it_was_stopped(films, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(films, out, *STREAM) == 0
    shown = capsys.readouterr().out
    assert re.search(r"constant reply, HLD", shown)
    whole, scores = rows(out), json.loads((out / "scores.json").read_text())
    assert scores["settings"]["online"] == {"memory": "window:64", "fps": 1.0, "labels": "seconds", "restart": False}
    assert scores["headline"] == "total"
    assert scores["read"]["tokens"]["most"] == 64
    kept = (out / "answers.jsonl").read_text().splitlines(keepends=True)[:5]
    (out / "answers.jsonl").write_text("".join(kept) + '{"id": "torn')
    assert run(films, out, *STREAM) == 0
    told = {name: (row["reply"], row["frames"], row["seen_until"]) for name, row in rows(out).items()}
    assert told == {name: (row["reply"], row["frames"], row["seen_until"]) for name, row in whole.items()}
    assert run(films, out, "--online", "--memory", "window:32") == 2
    assert "online.memory was 'window:64', is 'window:32'" in capsys.readouterr().err


def test_what_cannot_be_shown_is_wrong_and_named(films, tmp_path, capsys):
    """A question before the first frame, and a video that is not there; the others are answered."""
    items = json.loads((films / ANNOTATIONS).read_text())
    first = [item for item in items if item["video"] == items[0]["video"]][:2]
    lost = {**items[0], "id": 9999, "video": "lost.mp4"}
    samples.write_rows(tmp_path / ANNOTATIONS, [{**first[0], "realtime": 0}, first[1], lost])
    samples.place(films / VIDEOS / items[0]["video"], tmp_path / VIDEOS / items[0]["video"])
    (tmp_path / SETTINGS).write_text((films / SETTINGS).read_text())
    assert run(tmp_path, tmp_path / "run", *STREAM) == 0
    assert "1 of 2 videos are missing" in capsys.readouterr().out
    found = rows(tmp_path / "run")
    early, absent = found[str(first[0]["id"])], found["9999"]
    assert (early["reply"], early["error"]["kind"]) == (None, "index")
    assert "before the first frame" in early["error"]["reason"]
    assert (absent["reply"], absent["error"]["kind"]) == (None, "missing")
    assert found[str(first[1]["id"])]["reply"] is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--memory", "all"), "--memory is about a stream: add --online"),
        (("--online", "--frames", "4"), "--frames is about videos that are read as a whole"),
        (("--online", "--memory", "window"), "needs a budget in tokens"),
        (("--online", "--memory", "summary:64"), "needs an adapter that was trained for it"),
        (("--online", "--labels", "hours"), "--labels hours: expected one of frames, seconds, none"),
        (("--online", "--memory", "window:8"), "a budget of 8 tokens is below one slot"),
        (("--online", "--crops", "4:9:512"), "--crops 4:9:512 shares tokens out among the slots of a video"),
        (("--online", "--reducer", "wap", "--ratio", "0.5"), "--reducer is about videos that are read as a whole"),
    ],
)
def test_settings_without_effect_are_refused(films, tmp_path, capsys, options, told):
    assert run(films, tmp_path / "run", *options) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stream_has_no_number_of_frames_that_a_mode_could_fit():
    with pytest.raises(ValueError, match="--mode auto fits a number of frames, and a stream has none"):
        watching_of(OVO, {"online": True, "mode": "auto:64"})


def test_polls_need_a_stream(films, tmp_path, capsys):
    samples.streaming_bench(tmp_path, films / VIDEOS / FILM)
    assert main(["eval", "streamingbench-proactive", str(tmp_path), "--vlm", TOY, "-o", str(tmp_path / "run")]) == 2
    assert "polls a stream: add --online" in capsys.readouterr().err
