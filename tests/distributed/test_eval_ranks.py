"""`liteframe eval` in several processes: the answers of one, each video asked about once, and one that dies."""

import json
import time

import pytest
from worlds import ROOT
from worlds.processes import finish, fork

from liteframe.cli.main import main
from liteframe.evaluate.shares import Rank, Shares, this_rank
from liteframe.toyworld.film_files import ANNOTATIONS, SETTINGS, VIDEOS, write_films
from liteframe.toyworld.questions import write_toyworld

TOY = str(ROOT / "liteframe/toyworld/checkpoint")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Two questions about each of five videos and of one that is none."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = [json.loads(line) for line in write_toyworld(folder, train=0, test=5, seed=7).test_rows.open()]
    rows = [{**row, "id": str(n)} for n, row in enumerate(rows) if n % 5 < 2]
    (folder / "bad.mp4").write_bytes(b"not a video")
    rows.append({**rows[0], "id": "bad", "video": "bad.mp4"})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "questions.jsonl"


def words(questions, out):
    return ["eval", questions, "--vlm", TOY, "--frames", 4, "-o", out]


def answers(folder):
    """Lines of all processes, by question: no question may have two."""
    lines = [json.loads(line) for file in folder.glob("answers*.jsonl") for line in file.read_text().splitlines()]
    by_id = {row["id"]: row for row in lines}
    assert len(by_id) == len(lines)
    return by_id


def test_three_processes_give_the_answers_of_one_though_one_dies(questions, tmp_path):
    assert main([*map(str, words(questions, tmp_path / "one"))]) == 0
    run = tmp_path / "many"
    with Shares(run, Rank(2, 3)) as dying:  # this process is the third, and has taken the fourth video
        assert dying.take(3)
        dying.begin()
        others = [
            fork("-m", "liteframe", *words(questions, run), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="3")
            for rank in range(2)
        ]
        until = time.monotonic() + 300
        while (not run.is_dir() or len(answers(run)) < 9) and time.monotonic() < until:
            time.sleep(0.1)
        assert len(answers(run)) == 9  # all but those of the fourth video
        assert others[0].poll() is None  # the first waits for it
        assert not (run / "scores.json").exists()
    errors = [finish(process) for process in others]
    assert [process.returncode for process in others] == [0, 0], errors
    assert answers(run) == answers(tmp_path / "one")
    of_one, of_many = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("one", "many"))
    for scores in (of_one, of_many):
        del scores["session"]
    assert of_many == of_one
    assert len(json.loads((run / "settings.json").read_text())["sessions"]) == 1
    # The same command, alone, finds nothing left but the video that cannot be read.
    assert main([*map(str, words(questions, run))]) == 0
    lines = [json.loads(line) for file in run.glob("answers*.jsonl") for line in file.read_text().splitlines()]
    assert sorted(row["id"] for row in lines) == sorted([*answers(tmp_path / "one"), "bad"])


def test_streams_are_shared_out_too(tmp_path):
    """Of two videos, one is another process's, which dies: its questions are left to the next run."""
    write_films(tmp_path, scenes=(2,), films=1, seconds=1)
    items = [item for item in json.loads((tmp_path / ANNOTATIONS).read_text()) if "options" in item][:2]
    (video,) = (tmp_path / VIDEOS).iterdir()
    (tmp_path / VIDEOS / "again.mp4").hardlink_to(video)
    items += [{**item, "id": 100 + item["id"], "video": "again.mp4"} for item in items]
    (tmp_path / ANNOTATIONS).write_text(json.dumps(items))
    run = tmp_path / "run"
    words = ["eval", "ovo-bench", tmp_path, "--vlm", TOY, "--config", tmp_path / SETTINGS, "-o", run]
    words = [*map(str, words), "--online", "--memory", "window:64"]
    with Shares(run, Rank(0, 2)) as dying:
        assert dying.take(1)
        dying.begin()
        other = fork("-m", "liteframe", *words, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
        told = finish(other)
        assert other.returncode == 0, told
    first, second = ({str(item["id"]) for item in items if item["video"] == name} for name in (video.name, "again.mp4"))
    assert set(answers(run)) == first
    assert main(words) == 0
    found = answers(run)
    assert set(found) == first | second
    for name in first:  # the same frames, watched by another process
        assert found[name]["reply"] == found[str(100 + int(name))]["reply"]


def test_who_one_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    assert this_rank() == Rank(0, 1, 0)
    for name, value in (("SLURM_NTASKS", "8"), ("SLURM_PROCID", "5"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank(5, 8, 1)
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # srun --pty bash: one process
    assert this_rank() == Rank(0, 1, 0)
    for name, value in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    assert this_rank() == Rank(3, 4, 2)
