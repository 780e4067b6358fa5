"""`liteframe compare` from a file of questions to tables and pictures, killed on the way, with systems that fail."""

import json
import re
from dataclasses import dataclass

import pytest
import torch
from typing_extensions import override
from worlds import ROOT
from worlds.students import make_student

from liteframe.cli.main import main
from liteframe.compare import run as running
from liteframe.compare.systems import SystemName, parse_systems
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import load_teacher
from liteframe.reduce import reducers
from liteframe.reduce.base import Tokens
from liteframe.reduce.reducer import Reducer
from liteframe.toyworld.questions import write_toyworld

TOY = str(ROOT / "liteframe/toyworld/checkpoint")
SYSTEMS = "wap,first,greedy,liteframe,liteframe+first@0.5"


@dataclass(frozen=True)
class First(Reducer):
    """The first tokens of each frame."""

    @override
    def reduce(self, signals, budget):
        keep = torch.zeros(signals.tokens.shape[:2], dtype=torch.bool)
        keep[:, : budget // len(keep)] = True
        return Tokens.kept(signals, keep)


@dataclass(frozen=True)
class Greedy(First):
    """Works on few frames only."""

    @override
    def reduce(self, signals, budget):
        if len(signals.tokens) > 4:
            raise ValueError("more than\n4 frames are too many")
        return super().reduce(signals, budget)


@pytest.fixture(autouse=True)
def more_reducers(monkeypatch):
    monkeypatch.setitem(reducers, "first", First())
    monkeypatch.setitem(reducers, "greedy", Greedy())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two questions about each of three videos and of one that is none, and a student of toyworld's teacher."""
    folder = tmp_path_factory.mktemp("compare")
    asked = [json.loads(line) for line in write_toyworld(folder, train=0, test=3, seed=11).test_rows.open()]
    rows = [{**row, "id": f"{n // 2}-{n % 2}"} for n, row in enumerate(r for i, r in enumerate(asked) if i % 5 < 2)]
    (folder / "bad.mp4").write_bytes(b"not a video")
    rows += [{**rows[0], "id": f"3-{q}", "video": "bad.mp4"} for q in range(2)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = load_teacher(TOY)
    config = LiteFrameConfig(
        dim=32, depth=2, heads=2, image_size=teacher.image_size, patch_size=teacher.patch_size, clip_frames=4,
        teacher_dim=teacher.dim, downsample={1: (4, 2, 2)}, image_mean=teacher.image_mean,
        image_std=teacher.image_std, resize=teacher.resize,
    )  # fmt: skip
    make_student(config, std=0.5).save_pretrained(folder / "encoder")
    return folder


def compare(world, run, *more, systems=SYSTEMS):
    command = ["compare", str(world / "questions.jsonl"), "--vlm", TOY, "--encoder", str(world / "encoder")]
    command += ["--systems", systems, "--frames", "4,8", "--ratios", "0.25", "--timing-runs", "2"]
    return main([*command, "--run", str(run), *more])


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reducers, "first", First())
        patch.setitem(reducers, "greedy", Greedy())
        assert compare(world, run) == 1  # one system fails
    return run


def points(run):
    return {(row["system"], row["frames"]): row for row in json.loads((run / "compare.json").read_text())["points"]}


def replies(run):
    found = {}
    for file in sorted(run.glob("answers/*/answers.jsonl")):
        found[file.parent.name] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def test_every_system_has_a_row_and_one_that_fails_says_why(whole):
    rows = points(whole)
    names = ("none", "wap@0.25", "first@0.25", "greedy@0.25", "liteframe", "liteframe+first@0.5")
    assert list(rows) == [("none", 4), ("none", 8), ("blind", 0), *((n, f) for n in names[1:] for f in (4, 8))]
    assert rows["greedy@0.25", 8]["failed"] == "question 0-0: more than 4 frames are too many"
    assert "accuracy" not in rows["greedy@0.25", 8]
    for key, row in rows.items():
        if key == ("greedy@0.25", 8):
            continue
        assert row["failed"] is None
        assert (row["count"], row["videos"], row["unread_questions"]) == (8, 4, 2)
        stages = [row["times_ms"][stage] for stage in ("tower", "signals", "reduction", "projector", "prefill")]
        assert row["times_ms"]["total"] >= max(stages) > 0
    per_frame = {name: rows[name, 8]["tokens_per_frame"] for name in names if name != "greedy@0.25"}
    assert per_frame == {"none": 16, "wap@0.25": 1, "first@0.25": 4, "liteframe": 1, "liteframe+first@0.5": 0.5}
    assert rows["blind", 0]["tokens"] == rows["blind", 0]["times_ms"]["tower"] == 0
    assert rows["none", 4]["times_ms"]["reduction"] == 0 < rows["first@0.25", 4]["times_ms"]["reduction"]
    assert rows["wap@0.25", 4]["space"] == "patch"


def test_differences_are_of_the_answers_that_are_kept(whole):
    rows, kept = points(whole), replies(whole)
    right = {name: [row["right"] for row in part] for name, part in kept.items()}
    assert sum(right["none-8"]) > sum(right["liteframe-8"])  # a student of noise
    for system in ("first@0.25", "liteframe"):
        found = rows[system, 8]["against none, 8 frames"]
        gap = sum(right[f"{system}-8"]) - sum(right["none-8"])
        assert found["difference"] == pytest.approx(gap / 8)
        assert rows[system, 8]["accuracy"] == sum(right[f"{system}-8"]) / 8
    assert "against none, 8 frames" in rows["blind", 0]


def test_answers_are_those_of_eval(world, whole, tmp_path):
    """The folder of a point is one of `liteframe eval`, which finds nothing left to ask there."""
    common = ["eval", str(world / "questions.jsonl"), "--vlm", TOY, "--frames", "8"]
    for name, options in {
        "first@0.25-8": ["--reducer", "first", "--ratio", "0.25"],
        "liteframe-8": ["--encoder", str(world / "encoder")],
    }.items():
        assert main([*common, *options, "-o", str(tmp_path / name)]) == 0
        alone = [json.loads(line) for line in (tmp_path / name / "answers.jsonl").read_text().splitlines()]
        assert alone == replies(whole)[name]
        files = [folder / name / "settings.json" for folder in (tmp_path, whole / "answers")]
        settings = [json.loads(file.read_text()) for file in files]
        assert [s.pop("sessions") for s in settings]
        assert settings[0] == settings[1]


def test_a_killed_comparison_goes_on_where_it_was(world, whole, tmp_path, monkeypatch):
    asked = []

    class KilledError(Exception):
        pass

    original = running.answer_row

    def answer(benchmark, reply, seed):
        asked.append((reply.system, reply.question.id))
        if len(asked) == 20:
            raise KilledError
        return original(benchmark, reply, seed)

    monkeypatch.setattr(running, "answer_row", answer)
    with pytest.raises(KilledError):
        compare(world, tmp_path / "run")
    before = sum(map(len, replies(tmp_path / "run").values()))
    assert before == 19
    monkeypatch.setattr(running, "time_points", lambda points, runs: ({name: TIMES for name in points}, {}))
    assert compare(world, tmp_path / "run") == 1
    kept, expected = replies(tmp_path / "run"), replies(whole)
    assert {name: {row["id"]: row for row in part} for name, part in kept.items()} == {
        name: {row["id"]: row for row in part} for name, part in expected.items()
    }
    count = len(asked)
    assert compare(world, tmp_path / "run") == 1
    assert len(asked) == count + 2 * 13  # only those of the video that cannot be read, which are tried again
    assert len((tmp_path / "run/times.jsonl").read_text().splitlines()) == 1


TIMES = {**dict.fromkeys(("tower", "signals", "reduction", "projector", "prefill"), 1.0), "total": 5.0,
         "total_p90": 6.0, "peak_mib": None}  # fmt: skip


def test_a_table_and_pictures_are_left(whole):
    text = (whole / "results.md").read_text()
    for part in ("## Points", "## Equal frames", "## Equal tokens", "## Equal time"):
        assert part in text
    assert re.search(r"^\| (\*\*)?first 1/4(\*\*)? \| 8 \| 4 \| 32 \|", text, re.MULTILINE)
    assert "- greedy 1/4, 8 frames: question 0-0: more than 4 frames are too many" in text
    for name in ("accuracy_against_time", "readings", "differences"):
        assert (whole / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(whole), "-o", str(whole.parent / "page.html")]) == 0
    page = (whole.parent / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "first 1/4" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--frames", "4,16"], "asking.frames was [4, 8], is [4, 16]"),
        (["--prompt", "{question} Now!"], "asking.prompt was '{question}', is '{question} Now!'"),
        (["--dtype", "bfloat16"], "model.dtype was 'float32', is 'bfloat16'"),
        (["--systems", "fastest"], "--systems 'fastest' is unknown; known: none, blind, liteframe, average"),
        (["--ratios", "4"], "--ratios: a ratio of 4"),
        (["--frames", "4,x"], "--frames 4,x: write numbers with commas"),
        (["--timing-runs", "0"], "--timing-runs 0: at least one pass"),
    ],
)
def test_refusals(world, whole, more, message, capsys):
    before = (whole / "settings.json").read_bytes()
    assert compare(world, whole, *more) == 2
    assert message in capsys.readouterr().err
    assert (whole / "settings.json").read_bytes() == before


def test_names_of_systems(monkeypatch):
    found = parse_systems(["wap", "liteframe", "liteframe+first@0.5", "none", "wap@0.25"], [0.25, 0.0625], student=True)
    assert [str(system) for system in found] == [
        "none", "blind", "wap@0.25", "wap@0.0625", "liteframe", "liteframe+first@0.5",
    ]  # fmt: skip
    assert [system.label for system in found[2:4]] == ["wap 1/4", "wap 1/16"]
    assert SystemName("none", "wap", 0.3).label == "wap 0.3"
    monkeypatch.setitem(reducers, "first+", First())
    assert [str(s) for s in parse_systems(["first+", "liteframe+first+"], [0.5], student=True)[2:]] == [
        "first+@0.5", "liteframe+first+@0.5",
    ]  # fmt: skip
    for name, message in (
        ("wap@zero", "'zero' is no ratio"), ("none@0.5", "none has no ratio"), ("blind+wap", "is unknown"),
        ("liteframe+", "is unknown"), ("wap@2", "a ratio of 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parse_systems([name], [0.5], student=True)
    with pytest.raises(ValueError, match="needs the LiteFrame encoder that --encoder names"):
        parse_systems(["liteframe"], [0.5], student=False)
    assert [str(system) for system in parse_systems(None, [0.5], student=True)][-1] == "liteframe"


def test_of_several_processes_the_first_times_and_writes(world, whole, tmp_path, monkeypatch):
    """One after the other here; which asks what, and one that dies, is in tests/distributed/test_eval_ranks.py."""
    monkeypatch.setattr(running, "time_points", lambda points, runs: ({name: TIMES for name in points}, {}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run = tmp_path / "run"
    assert compare(world, run, systems="wap,liteframe") == 0
    assert not {"compare.json", "times.jsonl", "results.md"} & {file.name for file in run.iterdir()}
    files = {file: file.read_bytes() for file in run.glob("answers/*/answers.1.jsonl")}
    assert len(files) == 7
    monkeypatch.setenv("RANK", "0")
    assert compare(world, run, systems="wap,liteframe") == 0
    assert {file: file.read_bytes() for file in files} == files
    found, expected = points(run), points(whole)
    assert {key: row["accuracy"] for key, row in found.items()} == {key: expected[key]["accuracy"] for key in found}
    # The video that cannot be read is tried by each process.
    assert all(len(rows) == 2 and rows[0]["reply"] is None for rows in replies(run).values())
