"""`liteframe prefer pairs`: what answers are about, judges, counts of every filter, and a run on toyworld."""

import json
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from worlds import ROOT
from worlds.vlms import answer_about

from liteframe.align.conversation_files import load_conversations
from liteframe.cli.main import main
from liteframe.data.video.errors import VideoError
from liteframe.evaluate.asking import Asking, System, VideoFrames
from liteframe.evaluate.benchmarks.base import Question
from liteframe.evaluate.benchmarks.own_questions import FreeForm
from liteframe.prefer import pairs as making
from liteframe.prefer.judges import CommandJudge, ExactJudge, JudgeError, ToyworldJudge
from liteframe.prefer.pairs import KEPT, PairMaker, Questions, count
from liteframe.prefer.views import KINDS, NoViewsError, span_slots
from liteframe.toyworld.questions import write_toyworld

TOY = str(ROOT / "liteframe/toyworld/checkpoint")


def views(kind, slots, span=(), seed=0):
    return KINDS[kind](slots, list(span), np.random.default_rng(seed))


def test_what_the_two_answers_are_about():
    times = [number / 4 for number in range(18)]  # the last slot has two frames
    assert span_slots(times, 4, 1.1, 2.0) == [1, 2]
    assert span_slots(times, 4, 4.1, None) == [4]
    assert span_slots(times, 4, None, None) == span_slots(times, 4, 1.01, 1.02) == []
    drawn = [views("irrelevant", 8, [2, 3], seed) for seed in range(20)]
    assert all(view.chosen == [2, 3] for view in drawn)
    assert all(view.rejected == sorted(set(view.rejected) - {2, 3}) and len(view.rejected) == 2 for view in drawn)
    assert len({tuple(view.rejected) for view in drawn}) > 5
    assert views("irrelevant", 3, [0, 1]).rejected == [2]  # there are no more
    halves = [views("incomplete", 5, seed=seed) for seed in range(20)]
    assert {len(set(view.rejected)) for view in halves} == {2}
    assert all(view.rejected == sorted(view.rejected) and view.chosen == [0, 1, 2, 3, 4] for view in halves)
    orders = [views("shuffled", 2, seed=seed).rejected for seed in range(5)]
    assert orders == [[1, 0]] * 5
    for kind, slots, span, why in (
        ("irrelevant", 4, [], "no span"), ("irrelevant", 2, [0, 1], "nothing outside"),
        ("incomplete", 1, [], "single"), ("shuffled", 1, [], "single"),
    ):  # fmt: skip
        with pytest.raises(NoViewsError, match=why):
            views(kind, slots, span)


QUESTION = Question("1", "v.mp4", "What colour is the circle?", "red")


def test_rules():
    exact, toy = ExactJudge(FreeForm()), ToyworldJudge(FreeForm())
    said = {
        ("red", "blue"): ("chosen", "chosen"), ("blue", "Red."): ("rejected", "rejected"),
        ("red", "Red"): ("tie", "tie"),
        ("blue", "green"): ("bad", "bad"), ("the red one", "blue"): ("bad", "chosen"),
        ("red", "left"): ("chosen", "bad"), ("red or blue", "green"): ("bad", "bad"),
    }  # fmt: skip
    for replies, verdicts in said.items():
        assert (exact.prefer(QUESTION, "", *replies), toy.prefer(QUESTION, "", *replies)) == verdicts, replies
    with pytest.raises(ValueError, match="no answer of toyworld"):
        toy.prefer(Question("1", "v.mp4", "Who?", "Ann"), "", "Ann", "Bob")


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("import sys; sys.exit('out of money')", "failed", "ended with 1: out of money"),
        ("print('I would say the first.')", "nonsense", "I would say"),
        ("import subprocess; subprocess.run(['sleep', '60'])", "hung", "longer than 0.5 s"),
    ],
)
def test_a_command_that_gives_no_verdict(code, kind, reason):
    with pytest.raises(JudgeError, match=reason) as caught:
        CommandJudge([sys.executable, "-c", code], 0.5).prefer(QUESTION, "", "red", "blue")
    assert caught.value.kind == kind


def test_a_command_is_told_all_there_is_to_know():
    code = "import json, sys; r = json.load(sys.stdin); print('Tie.' if r == EXPECTED else sorted(r))"
    expected = {"question": QUESTION.text, "answer": "red", "facts": "né", "chosen": "a", "rejected": "b"}
    judge = CommandJudge([sys.executable, "-c", code.replace("EXPECTED", repr(expected))], 20)
    assert judge.prefer(QUESTION, "né", "a", "b") == "tie"
    with pytest.raises(ValueError, match="there is no such command"):
        CommandJudge(["no-such-judge"], 1)


@dataclass
class FirstAndLast:
    """A model that names the first and the last frame it sees, which are numbered; silent about the third alone."""

    encoder = processor = None

    def look(self, frames, times):
        assert list(times) == list(range(len(frames)))
        self.seen = frames[:, 0, 0, 0].tolist()
        return self

    def ask(self, text, max_new_tokens):
        self.text = "" if self.seen == [2] else f"{self.seen[0]} {self.seen[-1]}"
        return self


class Says:
    """A judge that says what it is told to, or raises it."""

    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)

    def prefer(self, question, facts, chosen, rejected):
        said = self.verdicts.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def outcomes(monkeypatch):
    """What becomes of questions about a film of six numbered frames, a second each."""

    def read(encoder, decoder, question, asking):
        assert question.start is question.end is None  # of the whole video
        if question.video == "broken.mp4":
            raise VideoError(question.video, "empty", "no bytes", "copy it again")
        frames = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 2, 2, 3))
        return VideoFrames(frames, tuple(range(6)), 6.0)

    monkeypatch.setattr(making, "read_video", read)

    def outcomes(asked, *verdicts):
        asking = Asking(6, None, "{question}", False, 4, 10.0)
        questions = Questions(FreeForm(), None, {})
        return PairMaker(FirstAndLast(), questions, asking, Says(*verdicts), 0).attempts(asked)

    return outcomes


def test_every_filter_is_counted(outcomes):
    spanned, broken = Question("s", "v.mp4", "Q", "a", start=2.0, end=2.5), Question("b", "broken.mp4", "Q", "a")
    asked = [(Question(f"{n}", "v.mp4", "Q", "a"), "shuffled") for n in range(6)]
    asked += [(broken, "incomplete"), (QUESTION, "irrelevant"), (spanned, "irrelevant")]
    failure = JudgeError("hung", "it took long")
    rows = list(outcomes(asked, "chosen", "rejected", "tie", "bad", failure, "chosen"))
    found = [row["outcome"] for row in rows]
    assert found[:5] == [
        KEPT, "judge: the rejected answer is better", "judge: a tie", "judge: no pair", "judge failed: hung"
    ]  # fmt: skip
    assert found[5:] == [
        KEPT, "no span, or no frame in it", "an answer that is empty or holds a control token", "video: empty"
    ]  # fmt: skip
    assert [row["id"] for row in rows if row["reply"] is None] == ["4/shuffled", "b/incomplete"]  # tried again
    assert count(rows) == {
        "tried": 9, "kept": 2, "by_kind": {"shuffled": 2},
        "dropped": {name: 1 for name in found if name != KEPT},
    }  # fmt: skip
    assert (rows[0]["reply"], rows[0]["frames"]) == ("0 5", 6)
    assert rows == list(outcomes(asked, "chosen", "rejected", "tie", "bad", failure, "chosen"))


def test_equal_answers_are_dropped_before_the_judge_and_a_judge_that_only_fails_stops_the_run(outcomes, monkeypatch):
    asked = [(Question(f"{n}", "v.mp4", "Q", "a"), "shuffled") for n in range(9)]
    with pytest.raises(ValueError, match="no verdict 5 times in a row, the last time because no key"):
        list(outcomes(asked, *[JudgeError("failed", "no key")] * 9))
    monkeypatch.setattr(FirstAndLast, "ask", lambda self, text, max_new_tokens: setattr(self, "text", "Yes. ") or self)
    assert {row["outcome"] for row in outcomes(asked)} == {"the same answer twice"}


def test_an_answer_sees_whole_slots_numbered_as_a_video_of_their_own(model, processor, frames):
    video = VideoFrames(frames(14), tuple(range(14)), 14.0)  # slots of four frames, the last of two
    asking = Asking(14, None, "{question}", False, 4, 10.0)
    maker = PairMaker(System.of(model, processor), Questions(FreeForm(), None, {}), asking, Says(), 0)
    for slots, seen in (([1, 3], [4, 5, 6, 7, 12, 13]), ([2, 0], [8, 9, 10, 11, 0, 1, 2, 3]), (range(4), range(14))):
        answer = maker._answer(video, slots, QUESTION, QUESTION.text, {})
        assert answer == answer_about(model, processor, video.frames[list(seen)], QUESTION.text, max_new_tokens=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Questions about two films of toyworld, one with a span, and about a film that is not there."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [json.loads(line) for line in write_toyworld(folder, train=0, test=2, seed=5).test_rows.open()]
    rows = [row for row in rows if row["type"] in ("order", "event")]
    rows[0] |= {"start": 1.0, "end": 5.0, "facts": "two shapes and a star"}
    rows.append({**rows[0], "video": "test/none.mp4"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make(world, out, *more):
    call = [
        "prefer",
        "pairs",
        world / "questions.jsonl",
        "--vlm",
        TOY,
        "--frames",
        16,
        "--judge",
        "toyworld",
        "-o",
        out,
    ]
    return main([*map(str, (*call, *more))])


def test_a_run_on_toyworld(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert make(world, out) == 0
    printed = capsys.readouterr().out
    counts = json.loads((out / "counts.json").read_text())
    tries = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert counts["tried"] == len(tries) == 5 * 3 == counts["kept"] + sum(counts["dropped"].values())
    assert counts["dropped"]["video: missing"] == 3
    assert counts["dropped"]["no span, or no frame in it"] == 3
    assert counts["kept"] == len(pairs) == sum(counts["by_kind"].values()) > 0
    for name, number in counts["dropped"].items():
        assert f"{name} " in printed
        assert str(number) in printed
    answers = {f"line {n}": json.loads(line)["answer"] for n, line in enumerate((world / "questions.jsonl").open(), 1)}
    for pair in pairs:
        assert answers[pair["id"].split("/")[0]] == pair["chosen"] != pair["rejected"]
        assert pair.keys() == {
            "id", "video", "frames", "question", "chosen", "rejected", "kind", "span", "model", "seed"
        }  # fmt: skip
    read = load_conversations(out / "pairs.jsonl", pairs=True)
    assert [(c.turns[-1].text, c.rejected) for c in read] == [(p["chosen"], p["rejected"]) for p in pairs]
    # Killed: of the last lines, three are about the film that is not there, one is half there, two are not.
    before = (out / "pairs.jsonl").read_bytes()
    (out / "pairs.jsonl").unlink()
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(lines[:-6]) + lines[-6][:9])
    assert make(world, out) == 0
    assert "continuing: 9 of 15 tries are done" in capsys.readouterr().out
    assert (out / "pairs.jsonl").read_bytes() == before
    assert make(world, out, "--seed", 1) == 2
    assert "seed was 0, is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--kinds", "shuffled,none"), "'none' is none of irrelevant, incomplete, shuffled"),
        (("--kinds", "shuffled,shuffled"), "each kind once"),
        (("--judge", "wise"), "there are exact, toyworld"),
        (("--judge-command", "true"), "name one of them"),
        (("--judge-deadline", "3"), "for a --judge-command"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(world, tmp_path, capsys, more, words):
    assert make(world, tmp_path / "out", *more, "--vlm", "nowhere") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_labels_are_needed_by_rules_only_and_no_empty_file_is_left(world, tmp_path, capsys):
    rows = [json.loads(line) for line in (world / "questions.jsonl").open()][:1]
    source = world / "open.jsonl"
    source.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "answer"}) + "\n" for row in rows))
    call = ["prefer", "pairs", str(source), "--vlm", TOY, "--frames", "8", "--kinds", "incomplete", "-o"]
    assert main([*call, str(tmp_path / "exact")]) == 2
    assert "open.jsonl:1: lacks 'answer'" in capsys.readouterr().err
    assert main([*call, str(tmp_path / "own"), "--judge-command", f"{sys.executable} -c print('tie')"]) == 2
    assert "no pair is left" in capsys.readouterr().err
    assert not (tmp_path / "own" / "pairs.jsonl").exists()
    assert json.loads((tmp_path / "own" / "counts.json").read_text())["kept"] == 0
