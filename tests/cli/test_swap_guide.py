"""docs/swap_the_encoder.md: its commands run, its fields and messages are those of the code."""

import re
import runpy
import shlex
import sys

import pytest
import yaml
from worlds import ROOT
from worlds.checkout import make_checkout

from liteframe.cli.main import build_parser, main

GUIDE = (ROOT / "docs" / "swap_the_encoder.md").read_text(encoding="utf-8")
# tests/cli/test_readme.py, tests/export/test_exports.py and test_graphs.py run these, which are slow.
ENCODER_EXPORTS = (["export", "hf-encoder"], ["export", "onnx"], ["export", "torch"])
# Fewer steps; nothing else differs from what the guide says.
SHORTER = {
    "train_ctd.py": ["--trainer.max_steps=2", "--data.batch_size=2", "--model.target.statistics_clips=2"],
    "train_lma.py": ["--trainer.max_steps=2", "--data.batch_size=2", "--data.micro_batch_size=2"],
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with the files that the guide's reader has."""
    make_checkout(tmp_path, videos=3)
    (text,) = blocks("yaml")
    (tmp_path / "my_ctd.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("reload_in_forks")
def test_every_command_runs(place, monkeypatch):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 9
    for command in commands:
        program, *words = shlex.split(command)
        if words[:2] in ENCODER_EXPORTS:
            build_parser("export").parse_args(words)
        elif program == "liteframe":
            assert main(words) == 0, command
        else:
            assert program == "python"
            monkeypatch.setattr(sys, "argv", [*words, *SHORTER[words[0]]])
            runpy.run_path(words[0], run_name="__main__")
    for name in ("parity.json", "LICENSE"):
        assert (place / "my_vlm" / name).is_file()
    assert (place / "runs" / "my_eval").is_dir()


@pytest.mark.parametrize(("name", "column"), [("internvl3_8b", 2), ("llava_onevision_7b", 3)])
def test_the_table_of_fields_is_that_of_the_configs(name, column):
    student = yaml.safe_load((ROOT / "configs" / "ctd" / f"{name}.yaml").read_text())["model"]["student"]
    for field in ("teacher_dim", "patch_size", "image_size"):
        (row,) = re.findall(rf"^\| `student\.{field}` .*$", GUIDE, re.MULTILINE)
        cells = [cell.strip() for cell in row.split("|")]
        assert str(student[field]) in cells[column]


def test_the_messages_are_those_of_the_code():
    source = "".join(
        re.sub(r'"\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for room in ("liteframe", "export")
        for path in sorted((ROOT / room).rglob("*.py"))
    )
    table = GUIDE.split("## What may go wrong")[1].split("## Licenses")[0]
    messages = [
        m
        for row in table.splitlines()[4:]
        for m in re.findall(r"`([^`]+)`", row.split("|")[1:2][0] if "|" in row else "")
    ]
    assert len(messages) >= 8
    for message in messages:
        assert message in source, message
