"""Every command and snippet of the README is run, on a small world, in the order in which it stands there."""

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from worlds import ROOT
from worlds.checkout import make_checkout

from liteframe.cli.main import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Fewer steps; nothing else differs from what the README says.
SHORTER = {
    "plan": ["--data.batch_size=2", "--model.target.statistics_clips=2"],
    "cache build": ["--data.batch_size=2", "--model.target.statistics_clips=2"],
    "train_ctd.py": ["--trainer.max_steps=2", "--data.batch_size=2", "--model.target.statistics_clips=2"],
    "train_lma.py": ["--trainer.max_steps=2", "--data.batch_size=2", "--data.micro_batch_size=2"],
}
TARGETS = re.findall(r"^(?:\.PHONY: )?([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like a checkout, with the user's files of the README in it."""
    place = tmp_path_factory.mktemp("checkout")
    make_checkout(place, videos=4)
    return place


def in_a_process(words, place):
    program = {"liteframe": [sys.executable, "-m", "liteframe"], "python": [sys.executable]}[words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def in_this_process(words, place):
    """What the interpreter would do, without the time it takes to import torch and transformers again."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.chdir(place)
        if words[0] == "liteframe":
            assert main(words[1:]) == 0, words
        else:
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(words[1], run_name="__main__")
    return printed.getvalue()


@pytest.fixture(scope="module")
def outputs(place):
    """What each command printed; the first of each program has an interpreter of its own."""
    printed, programs = {}, set()
    for command in (line for block in blocks("bash") for line in block.splitlines() if line.strip()):
        words = shlex.split(command)
        call = [*words, *SHORTER.get(words[1], SHORTER.get(" ".join(words[1:3]), []))]
        printed[command] = (in_this_process if words[0] in programs else in_a_process)(call, place)
        programs.add(words[0])
    assert programs == {"liteframe", "python"}
    return printed


def test_commands_do_what_the_readme_says(place, outputs):
    assert len(outputs) == 15
    assert len((place / "good.jsonl").read_text().splitlines()) == 4
    assert (place / "good.bad.jsonl").read_text() == ""
    for run in ("my_ctd", "my_lma", "from_cache"):
        for name in ("config.yaml", "checkpoints/last.ckpt", "report.json"):
            assert (place / "runs" / run / name).is_file()
        assert list((place / "runs" / run).glob("events.out.tfevents.*"))
    assert json.loads((place / "my_vlm" / "parity.json").read_text())["max_abs_difference"] <= 1e-4
    assert json.loads((place / "my_encoder" / "parity.json").read_text())["max_abs_difference"] <= 1e-4
    assert json.loads((place / "my_onnx" / "parity.json").read_text())["max_relative_difference"] <= 1e-4
    assert json.loads((place / "runs/from_cache/report.json").read_text())["data"]["cache"]
    by_name = {" ".join(command.split()[:2]): said for command, said in outputs.items()}
    assert by_name["liteframe ask"].strip()
    assert "[LEARN]" in by_name["liteframe preview"]
    scores = json.loads(next((place / "runs/my_eval").glob("*score*.json")).read_text())
    assert "accuracy" in json.dumps(scores)


def test_snippets_run(place, outputs, monkeypatch):
    monkeypatch.chdir(place)
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["tokens"].shape == (1, 16, 4, 4, 128)  # 64 frames of 64 pixels through the tiny student
    assert (names["session"].frames, names["session"].size().tokens) == (32, 32)  # 4 tokens of a slot of 4 frames
    assert isinstance(names["answer"], str)  # of 32 black frames by two steps of training, it may be empty


def test_the_costs_are_those_that_info_prints(outputs):
    printed = outputs["liteframe info"]
    for row in ("304.01M", "158.80T", "86.31M", "44.81T", "87.15M", "17.92T"):
        assert row in printed
        assert row in README


def test_make_targets_exist():
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert target in TARGETS


def test_recorded_results_stand_in_the_readme():
    """The table is the file that the recorded run wrote, and says when, where and by which command."""
    folder = ROOT / "docs" / "results" / "demo_full"
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "results.md").read_text().strip() in README
    for fact in (report["command"], report["date"], report["machine"]):
        assert fact in README
