"""`liteframe doctor` and `liteframe` alone: what is there, and the command that brings what is not."""

import configparser
import re

import pytest
from packaging.requirements import Requirement
from worlds import ROOT

from liteframe.cli import doctor
from liteframe.cli.main import COMMANDS, TASKS, main

EXTRAS = configparser.ConfigParser()
EXTRAS.read(ROOT / "setup.cfg")


def test_alone_it_lists_all_commands_by_task(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert sum(len(commands) for commands in TASKS.values()) == len(COMMANDS)
    for task, commands in TASKS.items():
        section = printed.split(f"\n{task}\n")[1].split("\n\n")[0]
        assert re.findall(r"^  (\w+) ", section, re.M) == list(commands)
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == printed


def test_it_says_what_this_machine_has(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for words in ("CPU, ", "kernels, cuda", "PyAV", "h264", "torch", "transformers", "Missing"):
        assert words in printed


def test_what_is_absent_old_or_untested_is_said_with_the_remedy(capsys, monkeypatch):
    versions = {"onnxruntime": doctor.ABSENT, "torch": "2.4.0", "peft": doctor.ABSENT, "timm": "1.0.99"}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, real(name)))
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG: torch is 2.4.0; needed: <2.16,>=2.11\n      pip install 'torch<2.16,>=2.11'" in printed
    assert re.search(r"WRONG: peft is not installed; .*\n      pip install 'peft>=", printed)
    tested = re.search(r"^timm==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert re.search(rf"^timm +1\.0\.99 \(tested: {re.escape(tested)}\)$", printed, re.M)
    assert "for export onnx: onnxruntime\n      pip install 'liteframe[onnx]'" in printed
    assert "a C++ compiler" in printed


@pytest.mark.parametrize("need", [need for need in doctor.NEEDS if "liteframe[" in need.remedy], ids=lambda n: n.what)
def test_extras_bring_what_they_are_named_for(need):
    extra = EXTRAS["options.extras_require"][re.search(r"liteframe\[(\w+)\]", need.remedy)[1]]
    brought = {Requirement(line).name for line in extra.splitlines() if line}
    assert set(need.packages) - {"lmms_eval"} <= brought


def test_the_tested_versions_travel_with_the_package():
    assert doctor.TESTED.read_bytes() == (ROOT / "constraints.txt").read_bytes()
    assert doctor.TESTED.name in EXTRAS["options.package_data"]["liteframe"].split()
