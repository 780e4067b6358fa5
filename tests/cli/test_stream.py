"""`liteframe stream`: answers at their times, stopped and continued, with what was seen and held."""

import json
import re
import shlex
import shutil
from itertools import count

import pytest
from worlds import ROOT
from worlds.ctd import write_video
from worlds.vlms import answer_about

from liteframe import StreamSession, load_video_llm, memories
from liteframe.cli.main import main
from liteframe.data.video.process import DecodeProcess

TOY = ROOT / "liteframe/toyworld/checkpoint"
QUESTIONS = ["Which way does the red circle move?", "What shape is the object?", "What colour is the circle?"]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("stream") / "a.mp4", frames=40, fps=8, seed=3)


@pytest.fixture
def stream(video, tmp_path, capsys):
    """Runs the command; gives its exit code, what it wrote, and what it said."""
    rows = [{"time": second, "question": text} for second, text in zip((3.0, 1.2, 99), QUESTIONS, strict=True)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*options, source=video):
        words = ["stream", source, "--vlm", TOY, "--fps", 2, "--questions", tmp_path / "questions.jsonl"]
        out = tmp_path / "answers.jsonl"
        code = main([str(word) for word in (*words, "-o", out, *options)])
        answers = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return code, answers, capsys.readouterr()

    return run


def test_answers_come_at_their_times(stream, video):
    code, answers, said = stream("--memory", "window:64")
    assert code == 0
    assert [(row["question"], row["frames"], row["seen_until"]) for row in answers] == [
        (QUESTIONS[1], 3, 1.0),
        (QUESTIONS[0], 7, 3.0),
        (QUESTIONS[2], 10, 4.5),
    ]
    with DecodeProcess() as decoder:
        frames = decoder.read(video, range(0, 40, 4))
    pair = load_video_llm(TOY)
    assert answers[0]["text"] == answer_about(*pair, frames[:3], QUESTIONS[1], max_new_tokens=64)
    session = StreamSession(*pair, memories["window"](64))
    session.add(frames)
    assert answers[2]["text"] == session.ask(QUESTIONS[2], max_new_tokens=64).text
    assert [row["tokens"] for row in answers] == [48, 64, 64]
    assert "7 frames until 3.0 s; window holds 64 tokens" in said.out
    assert "the stream has ended after 10 frames, 32 tokens a second; window holds 64 tokens" in said.err


def test_stopped_and_continued_is_as_without(stream, tmp_path, monkeypatch):
    _, expected, _ = stream("--memory", "halving:64")
    (tmp_path / "answers.jsonl").unlink()
    state, calls, add = tmp_path / "seen.state", count(), StreamSession.add

    def stopped(self, *given):
        if next(calls) == 5:
            raise KeyboardInterrupt
        add(self, *given)

    monkeypatch.setattr(StreamSession, "add", stopped)
    code, answers, said = stream("--memory", "halving:64", "--state", state)
    assert (code, len(answers)) == (130, 1)
    assert f"stopped; go on with --state {state} --resume" in said.err
    code, answers, _ = stream("--memory", "halving:64", "--state", state, "--resume")
    assert code == 0
    for row in (*answers, *expected):
        row.pop("first_word")
    assert answers == expected
    code, _, said = stream("--memory", "halving:64", "--state", state)
    assert (code, "is there already; add --resume" in said.err) == (2, True)
    code, _, said = stream("--memory", "window:64", "--state", state, "--resume")
    assert (code, "was saved with memory 'halving', this session has 'window'" in said.err) == (2, True)


def test_what_cannot_be_followed_is_told_before_a_model_is_loaded(stream, tmp_path):
    for options, message in (
        (["--fps", 0], "--fps and --stall must be above 0"),
        (["--memory", "window"], "needs a budget in tokens"),
        (["--resume"], "give both"),
        (["--state", tmp_path / "none", "--resume"], "is not there"),
    ):
        code, _, said = stream(*options, "--vlm", tmp_path / "no_model")
        assert (code, message in said.err) == (2, True)
    code, _, said = stream(source=tmp_path / "none.mp4")
    assert (code, "no such file or folder" in said.err) == (2, True)
    bad = tmp_path / "bad.jsonl"
    for row, message in (
        ('{"time": -1, "question": "What?"}', 'needs "time", seconds from 0 on, got -1'),
        ('{"time": 1, "question": ""}', 'needs "question"'),
        ('{"time": 1, "question": "<video>"}', "control token or placeholder"),
        ("", "holds no question"),
    ):
        bad.write_text(row + "\n" if row else "")
        code, _, said = stream("--questions", bad)
        assert (code, message in said.err) == (2, True)


def test_the_command_of_the_docs_runs(video, tmp_path, monkeypatch):
    text = (ROOT / "docs/long_video.md").read_text()
    command = re.search(r"```bash\n(liteframe stream .*)\n```", text)[1]
    (tmp_path / "asked.jsonl").write_text(re.search(r"rows `(.*?)`", text)[1] + "\n")
    (tmp_path / "my_videos").mkdir()
    shutil.copy(video, tmp_path / "my_videos/00000.mp4")
    (tmp_path / "my_vlm").symlink_to(TOY)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)[1:]) == 0
    answer = json.loads((tmp_path / "answers.jsonl").read_text())
    assert (answer["question"], answer["frames"], answer["seen_until"]) == ("What happens?", 5, 4.0)
