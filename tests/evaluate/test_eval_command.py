"""`liteframe eval` from files to scores: the words of a session, one encoding a video, and runs that are continued."""

import json
from dataclasses import replace

import pytest
from worlds import ROOT
from worlds import benchmarks as samples
from worlds.ctd import write_video
from worlds.lettered import write_lettered_questions
from worlds.vlms import answer_about

from liteframe.answer import ask
from liteframe.answer.session import StreamSession
from liteframe.cli.main import main
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.evaluate import asking
from liteframe.evaluate.asking import Asking, check_words
from liteframe.evaluate.benchmarks.base import Question
from liteframe.evaluate.benchmarks.own_questions import FreeForm
from liteframe.models.vlm.load import load_video_llm

TOY = str(ROOT / "liteframe/toyworld/checkpoint")
VIDEOS = 3


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Three videos of eleven questions, in the words of toyworld."""
    file = write_lettered_questions(tmp_path_factory.mktemp("eval") / "world", VIDEOS)
    return file


@pytest.fixture
def calls(monkeypatch):
    """How often a video was encoded and a text generated."""
    counts = {"add": 0, "ask": 0}
    for name in counts:
        original = getattr(StreamSession, name)

        def counted(*args, name=name, original=original, **settings):
            counts[name] += 1
            return original(*args, **settings)

        monkeypatch.setattr(StreamSession, name, counted)
    return counts


def run(questions, out, *more, prompt="{question}"):
    prompts = [] if prompt is None else ["--prompt", prompt]
    return main(["eval", str(questions), "--vlm", TOY, "--frames", "4", "-o", str(out), *prompts, *more])


def lines(out):
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(questions, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    assert run(questions, out) == 0
    return out


def test_replies_are_those_of_answer(questions, whole):
    model, processor = load_video_llm(TOY)
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    found = lines(whole)
    assert [row["id"] for row in found] == [row["id"] for row in asked]
    with DecodeProcess() as decoder:
        for v in range(VIDEOS):
            frames = decoder.read(questions.parent / f"{v}.mp4", [7, 23, 39, 54])  # of 64, by InternVL's rule
            for row, reply in zip(asked[11 * v : 11 * v + 11], found[11 * v : 11 * v + 11], strict=True):
                assert reply["reply"] == answer_about(model, processor, frames, row["question"], max_new_tokens=16)
                assert reply["frames"] == 4


def test_what_determines_a_score_is_kept_beside_it(questions, whole):
    scores = json.loads((whole / "scores.json").read_text())
    settings, session = scores["settings"], scores["session"]
    assert settings["asking"]["frames"] == 4
    assert settings["asking"]["prompt"] == "{question}"
    assert settings["decoding"] == {"kind": "greedy", "batch": 1}
    assert len(settings["model"]["sha256"]["vlm"]) == len(settings["annotations"]["sha256"]) == 64
    assert settings["versions"].keys() >= {"liteframe", "torch", "transformers", "av"}
    assert session["vlm"] == TOY
    assert session.keys() >= {"date", "command", "platform", "device", "python"}
    kept = json.loads((whole / "settings.json").read_text())
    assert kept["sessions"] == [session]
    assert {key: kept[key] for key in settings} == settings


def test_a_killed_run_goes_on_where_it_was(questions, whole, tmp_path, calls, capsys):
    assert run(questions, tmp_path / "run") == 0
    assert calls == {"add": VIDEOS, "ask": 11 * VIDEOS}
    file = tmp_path / "run/answers.jsonl"
    data = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(data[:15]) + data[15][:20])  # torn within line 16: 15 questions have a reply
    (tmp_path / "run/scores.json").unlink()
    assert run(questions, tmp_path / "run") == 0
    assert calls == {"add": VIDEOS + 2, "ask": 11 * VIDEOS + 18}
    assert "15 questions already have a reply" in capsys.readouterr().out
    assert lines(tmp_path / "run") == lines(whole)
    first, again = (json.loads((out / "scores.json").read_text()) for out in (whole, tmp_path / "run"))
    assert first["accuracy"] == again["accuracy"]
    assert first["settings"] == again["settings"]
    assert len(json.loads((tmp_path / "run/settings.json").read_text())["sessions"]) == 2


def test_other_settings_are_refused_and_named(questions, whole, tmp_path, capsys):
    def refused(*more, file=questions, prompt="{question}"):
        assert run(file, whole, *more, prompt=prompt) == 2
        return capsys.readouterr().err

    before = (whole / "answers.jsonl").read_bytes()
    assert "asking.frames was 4, is 5" in refused("--frames", "5")
    said = refused(prompt="{question} Now!")
    assert "asking.prompt was '{question}', is '{question} Now!'" in said
    assert "another folder" in said
    assert "model.dtype was 'float32', is 'bfloat16'" in refused("--dtype", "bfloat16")
    # the same questions, one of them with another answer
    for video in questions.parent.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    rows = questions.read_text().splitlines()
    changed = tmp_path / "questions.jsonl"
    changed.write_text("\n".join([json.dumps({**json.loads(rows[0]), "answer": "N"}), *rows[1:]]))
    assert "annotations.sha256 was" in refused(file=changed)
    assert (whole / "answers.jsonl").read_bytes() == before


def test_bad_videos_count_as_wrong_and_are_told_apart(tmp_path, capsys):
    video = write_video(tmp_path / "good.mp4", frames=24, fps=8)
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    row = {"question": "What colour is the circle?", "answer": "red"}
    names = ("good", "bad", "gone")
    file = samples.write_rows(tmp_path / "q.jsonl", [{**row, "video": f"{name}.mp4", "id": name} for name in names])
    late = {**row, "video": "good.mp4", "id": "late", "start": 60}
    file.write_text(file.read_text() + json.dumps(late) + "\n")
    assert run(file, tmp_path / "run", prompt=None) == 0
    said = capsys.readouterr().out
    assert "1 of 3 videos are missing" in said
    assert "3 questions count as wrong because their video could not be read" in said
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["failed"] == {"questions": 3, "kinds": {"not_video": 1, "missing": 1, "index": 1}}
    assert (scores["count"], scores["of_read"]["count"]) == (4, 1)
    assert scores["accuracy"] == scores["of_read"]["accuracy"] / 4
    # A video that comes later is read then; the others' failures stay.
    samples.place(video, tmp_path / "gone.mp4")
    assert run(file, tmp_path / "run", prompt=None) == 0
    again = json.loads((tmp_path / "run/scores.json").read_text())
    assert again["failed"] == {"questions": 2, "kinds": {"not_video": 1, "index": 1}}


def test_videos_that_were_too_slow_are_read_with_a_longer_deadline(tmp_path, monkeypatch, capsys):
    video = write_video(tmp_path / "v.mp4", frames=24, fps=8)
    row = {"question": "What colour is the circle?", "answer": "red", "video": "v.mp4"}
    file = samples.write_rows(tmp_path / "q.jsonl", [row])
    with monkeypatch.context() as patch:

        def slow(*_args):
            raise VideoError(video, "deadline", "decoding did not end within 1 s")

        patch.setattr(asking, "read_video", slow)
        assert run(file, tmp_path / "run", "--deadline", "1") == 0
    assert "once more, with a longer --deadline." in " ".join(capsys.readouterr().out.split())
    assert run(file, tmp_path / "run", "--deadline", "600") == 0
    assert lines(tmp_path / "run")[-1]["reply"]
    sessions = json.loads((tmp_path / "run/settings.json").read_text())["sessions"]
    assert [session["deadline"] for session in sessions] == [1, 600]


def test_frames_are_prepared_in_parts_as_in_one(questions, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "PART_BYTES", 3 * 64 * 64 * 3)
    assert run(questions, tmp_path / "parts") == 0
    assert lines(tmp_path / "parts") == lines(whole)


@pytest.mark.parametrize("name", ["video-mme", "mlvu", "longvideobench", "hlvid"])
def test_each_benchmark_runs(name, tmp_path, capsys):
    video = write_video(tmp_path / "v.mp4", frames=24, fps=8)
    folder = {"video-mme": samples.video_mme, "mlvu": samples.mlvu, "longvideobench": samples.longvideobench,
              "hlvid": samples.hlvid}[name](tmp_path / "set", video)  # fmt: skip
    command = ["eval", name, str(folder), "--vlm", TOY, "--frames", "4", "--fps", "1"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    scores = json.loads((tmp_path / "run/scores.json").read_text())
    assert scores["benchmark"] == name
    assert 0 <= scores["low"] <= scores["accuracy"] <= scores["high"] <= 1
    assert {row["frames"] for row in lines(tmp_path / "run")} == {3}  # 3 s at 1 a second
    assert name != "mlvu" or "M-Avg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "make", "shown"),
    [
        # frames at 0.25, 1.0, 1.75 and 2.5 s or so: the line at 2.9 s is not among them
        ("video-mme", samples.video_mme, {"000-0": "Good & early", "001-0": asking.NO_SUBTITLES}),
        ("longvideobench", samples.longvideobench, {"v0_0": "first", "v1_0": "short"}),
    ],
)
def test_subtitles_of_the_frames_are_shown(name, make, shown, tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", frames=24, fps=8)
    texts = {}
    original = asking.question_text

    def kept(benchmark, question, *rest):
        texts[question.id] = original(benchmark, question, *rest)
        return texts[question.id]

    monkeypatch.setattr(asking, "question_text", kept)
    command = ["eval", name, str(make(tmp_path / "set", video)), "--vlm", TOY, "--frames", "4", "--subtitles"]
    assert main([*command, "-o", str(tmp_path / "run")]) == 0
    for question, line in shown.items():
        assert texts[question].splitlines()[1] == line
        assert "at the end" not in texts[question]
        assert "beyond" not in texts[question]


def test_yaml_gives_what_the_command_line_does_not(questions, tmp_path, capsys):
    config = tmp_path / "eval.yaml"
    config.write_text(f'vlm: {TOY}\nframes: 7\nmax_new_tokens: 2\nprompt: "{{question}}"\n')
    command = ["eval", str(questions), "--config", str(config), "-o", str(tmp_path / "run")]
    assert main([*command, "--frames", "2"]) == 0
    settings = json.loads((tmp_path / "run/settings.json").read_text())["asking"]
    assert (settings["frames"], settings["max_new_tokens"], settings["prompt"]) == (2, 2, "{question}")
    config.write_text("frame: 7\n")
    assert main(command) == 2
    assert "unknown ['frame']; known: vlm," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frames", "0"], "--frames 0: a whole number of at least 1"),
        (["--fps", "-1"], "--fps -1.0: a positive number"),
        (["--subtitles"], "--subtitles: multiple choice has none"),
        (["--prompt", "{options}"], "lacks {question}"),
        (["--frames", "64", "--max-new-tokens", "100000"], "use fewer frames or a shorter answer"),
        (["--prompt", "{question} <IMG_CONTEXT>"], "question 0-0: the question holds '<IMG_CONTEXT>'"),
    ],
)
def test_refusals(questions, more, message, tmp_path, capsys):
    assert run(questions, tmp_path / "run", *more, prompt=None) == 2
    assert message in capsys.readouterr().err


def test_words_that_cannot_be_asked_are_all_told_before_the_first_question(questions, tmp_path, capsys):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    for number, words in ((3, "What is in <image>?"), (7, "Is <|im_end|> red?")):
        rows[number]["question"] = words
    for video in questions.parent.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    file = samples.write_rows(tmp_path / "q.jsonl", rows)
    assert main(["eval", str(file), "--vlm", str(tmp_path / "no_model"), "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "2 of 33 questions cannot be asked" in said
    assert "question 0-3: the question holds '<image>'" in said
    assert "question 0-7: the question holds '<|im_end|>'" in said
    # and what is shown beside them
    (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nsee &lt;img&gt;\n")
    asked = Question("q", str(tmp_path / "0.mp4"), "What?", "red", subtitles=str(tmp_path / "s.srt"))
    how = Asking(4, None, "{subtitles} {question}", True, 8, 9.0)
    with pytest.raises(ValueError, match=r"question q: the subtitle file .*s\.srt holds '<img>'"):
        check_words(FreeForm(), [asked], how)
    check_words(FreeForm(), [asked], replace(how, subtitles=False))


def test_a_folder_of_something_else_is_left_alone(questions, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert run(questions, tmp_path) == 2
    assert "holds other files and no settings.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert run(questions, tmp_path / "notes.txt") == 2
    assert "is a file; name a folder" in capsys.readouterr().err
