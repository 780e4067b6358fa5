"""Every command and snippet of the README is run from an installed wheel, in a folder with the user's files only."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from worlds import ROOT
from worlds.checkout import make_user_files

README = (ROOT / "README.md").read_text(encoding="utf-8")
# Fewer steps; nothing else differs from what the README says.
SHORTER = {
    "plan": ["--data.batch_size=2", "--model.target.statistics_clips=2"],
    "cache build": ["--data.batch_size=2", "--model.target.statistics_clips=2"],
    "distill": ["--trainer.max_steps=2", "--data.batch_size=2", "--model.target.statistics_clips=2"],
    "compare": ["--timing-runs=2"],
    "align": ["--trainer.max_steps=2", "--data.batch_size=2", "--data.micro_batch_size=2"],
}
TARGETS = re.findall(r"^(?:\.PHONY: )?([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
# What the interpreter would do for each command, without the time it takes to import torch and transformers again.
ONE_PROCESS = """
import contextlib, io, json, sys
from liteframe.cli.main import main
commands, snippets = json.load(open("calls.json"))
printed = []
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0, words
    printed.append(said.getvalue())
names = {}
for snippet in snippets:
    exec(snippet, names)
session = names["session"]
facts = [list(names["tokens"].shape), session.frames, session.size().tokens, names["answer"]]
facts.append(sys.modules["liteframe"].__file__)
json.dump([printed, facts], open("said.json", "w"))
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """bin/ of an environment with LiteFrame's wheel in it; what it needs is that of the environment of these tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("liteframe", "kernels", "export", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", wheel], check=True
    )
    return python.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the user's files of the README in it, and nothing else."""
    place = tmp_path_factory.mktemp("user")
    make_user_files(place, videos=4)
    return place


@pytest.fixture(scope="module")
def said(place, programs):
    """What each command printed, and facts about what the snippets made; the first command is called as it stands."""
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    calls = []
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "liteframe"
        calls.append([*words, *SHORTER.get(words[0], SHORTER.get(" ".join(words[:2]), []))])
    (place / "calls.json").write_text(json.dumps([calls[1:], blocks("python")]))
    printed = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for call in ([programs / "liteframe", *calls[0]], [programs / "python", "-c", ONE_PROCESS]):
        done = subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        printed.append(done.stdout)
    rest, facts = json.loads((place / "said.json").read_text())
    return dict(zip(commands, [printed[0], *rest], strict=True)), facts


def test_commands_do_what_the_readme_says(place, said, programs):
    outputs, (tokens, frames, held, answer, home) = said
    assert len(outputs) == 18
    assert home.startswith(str(programs.parent))  # the wheel's, not this checkout's
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
    assert 'alt="frames, target and student tokens"' in (place / "runs/my_ctd/report.html").read_text()
    by_name = {" ".join(command.split()[:2]): words for command, words in outputs.items()}
    assert by_name["liteframe ask"].strip()
    assert "[LEARN]" in by_name["liteframe preview"]
    names = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert {line.split()[0] for line in by_name["liteframe config"].splitlines()} == names
    compared = json.loads((place / "runs/my_compare/compare.json").read_text())["points"]
    assert [row["system"] for row in compared] == ["none", "none", "blind", *["wap@0.0625"] * 2, *["liteframe"] * 2]
    assert not any(row["failed"] for row in compared)
    scores = json.loads(next((place / "runs/my_eval").glob("*score*.json")).read_text())
    assert "accuracy" in json.dumps(scores)
    # the snippets: 64 frames of 64 pixels through the tiny student; 4 tokens of a slot of 4 frames
    assert (tokens, frames, held) == ([1, 16, 4, 4, 128], 32, 32)
    assert isinstance(answer, str)  # of 32 black frames by two steps of training, it may be empty


def test_the_costs_are_those_that_info_prints(said):
    printed = said[0]["liteframe info"]
    for row in ("304.01M", "158.80T", "86.31M", "44.81T", "87.15M", "17.92T"):
        assert row in printed
        assert row in README


def test_make_targets_exist():
    for target in re.findall(r"^make ([a-z-]+)", README, re.MULTILINE):
        assert target in TARGETS


def test_recorded_results_stand_in_the_readme():
    """The table is the file that the recorded run wrote, and says when, where and by which command."""
    folder = ROOT / "docs" / "results" / "demo"
    report = json.loads((folder / "report.json").read_text())
    assert (folder / "results.md").read_text().strip() in README
    for fact in (report["command"], report["date"], report["machine"]):
        assert fact in README
