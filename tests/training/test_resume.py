"""One table says of every setting of all commands what resuming does with another value."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from worlds import ROOT

from liteframe.align.command import LMACommand, PreferCommand
from liteframe.align.lora import LoraSettings
from liteframe.distill.clip_view import Augmentation
from liteframe.distill.command import CTDCommand
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import TeacherSettings
from liteframe.training.guard import GuardSettings
from liteframe.training.resume import (
    SETTINGS,
    OnResume,
    changes,
    continued_run,
    flat,
    own_settings,
    plain_settings,
    refuse_fixed,
    refuse_other_contents,
    with_settings,
)
from liteframe.training.schedule import OptimizerSettings

# Their values are others', under the names that are in the table.
LINKED = {
    "data.seed": "seed_everything",
    "data.clip_frames": "model.student.clip_frames",
    "model.init_from": "init_from",
}


class Parsed(Exception):
    """Thrown instead of building a run."""


def parsed(command, config):
    """The parser of a training command and what it makes of a configuration."""
    with pytest.MonkeyPatch.context() as patch:

        def stop(self):
            raise Parsed(self._parser("fit"), self.settings)

        patch.setattr(command, "before_instantiate_classes", stop)
        with pytest.raises(Parsed) as caught:
            command(["fit", "--config", str(ROOT / "configs" / config)])
    return caught.value.args


@pytest.fixture(scope="module")
def all_three():
    commands = {"ctd": CTDCommand, "lma": LMACommand, "prefer": PreferCommand}
    return [parsed(command, f"{kind}/internvl3_8b.yaml") for kind, command in commands.items()]


def options(parser):
    """Every option that a value can be given to: argparse's own list."""
    # The last two are made of the model, and no options of the command line.
    groups = {"config", "help", "print_config", "processor", "mode_processors"}
    names = {action.dest for action in parser._actions if action.option_strings and not is_group(action)}
    return {name for name in names if name.split(".")[-1] not in groups}


def is_group(action):
    """A whole nested configuration in one option, such as --model.optimizer FILE."""
    return type(action).__name__ in (
        "_ActionConfigLoad",
        "ActionConfigFile",
        "_ActionPrintConfig",
        "_ActionHelpClassPath",
    )


def test_every_setting_of_every_command_has_a_row_and_every_row_a_setting(all_three):
    found = set()
    for parser, settings in all_three:
        walked = {name for name in settings.clone().keys(branches=False)} - {"config"}
        assert walked == options(parser) | (LINKED.keys() & walked)
        assert {LINKED.get(name, name) for name in walked} - SETTINGS.keys() == set(), "these have no row"
        found |= {LINKED.get(name, name) for name in walked}
        assert set(plain_settings(parser, settings)) == walked - LINKED.keys()
    assert SETTINGS.keys() - found == set(), "these are settings of no command"


@pytest.mark.parametrize(
    ("kind", "above"),
    [
        (LiteFrameConfig, "model.student"), (TeacherSettings, "model.teacher"), (TargetSettings, "model.target"),
        (OptimizerSettings, "model.optimizer"), (GuardSettings, "model.guard"), (LoraSettings, "model.lora"),
        (Augmentation, "data.augment"),
    ],
)  # fmt: skip
def test_every_field_of_every_nested_configuration_has_a_row(kind, above):
    assert is_dataclass(kind)
    assert {f"{above}.{field.name}" for field in fields(kind)} == {
        name for name in SETTINGS if name.startswith(f"{above}.")
    }


def other(value):
    return not value if isinstance(value, bool) else f"{value} and more"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_kind_of_row_does_as_it_says(all_three, number):
    before = plain_settings(*all_three[number])
    assert changes(before, dict(before)) == {}
    for name, value in before.items():
        now = before | {name: other(value)}
        if SETTINGS[name] is OnResume.FIXED:
            with pytest.raises(ValueError, match=re.escape(f"{name} was {value!r} and is {other(value)!r}")):
                refuse_fixed(before, now)
        else:
            refuse_fixed(before, now)
        expected = {} if SETTINGS[name] is OnResume.COMMAND else {name: (value, other(value))}
        assert changes(before, now) == expected


def test_a_setting_that_the_table_does_not_know_is_not_changed_on_a_guess():
    with pytest.raises(ValueError, match=r"trainer\.of_tomorrow was 1 and is 2"):
        refuse_fixed({"trainer.of_tomorrow": 1}, {"trainer.of_tomorrow": 2})


def test_other_contents_are_named_with_both_digests():
    refuse_other_contents({"data.videos": "a"}, {"data.videos": "a"})
    with pytest.raises(ValueError, match=r"data.videos was a and is b; data.cache was None and is c\. Bring it back"):
        refuse_other_contents({"data.videos": "a", "data.cache": None}, {"data.videos": "b", "data.cache": "c"})


def test_values_that_are_mappings_are_one_setting():
    nested = {"model": {"student": {"downsample": {4: [2, 2, 2]}}, "teacher": {"options": {"a": {"b": 1}}}}, "run": "x"}
    assert dict(flat(nested)) == {
        "model.student.downsample": {4: [2, 2, 2]}, "model.teacher.options": {"a": {"b": 1}}, "run": "x"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "run", "resume"),
    [
        ("fit --config a.yaml --run r --resume", "r", True),
        ("fit --resume auto --run=r --data.workers 2", "r", "auto"),
        ("fit --run r --resume=auto", "r", "auto"),
        ("fit --run r", "r", False),
    ],
)
def test_a_continued_run_is_known_from_its_command_line(tmp_path, monkeypatch, words, run, resume):
    monkeypatch.chdir(tmp_path)
    assert continued_run(words.split()) == (run, resume)
    assert own_settings(run, resume) is None  # there is nothing to continue
    checkpoints = tmp_path / "r" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (tmp_path / "r" / "config.yaml").touch()
    (checkpoints / "step-1.ckpt").touch()  # killed before it was named
    assert own_settings(run, resume) is None
    (checkpoints / "last.ckpt").touch()
    assert own_settings("", True) is None
    own = own_settings(run, resume)
    assert own == (Path("r/config.yaml") if resume else None)
    first, *others = words.split()
    # Before all that the command line says, which therefore counts.
    assert with_settings(words.split(), own) == [first, *(["--config=r/config.yaml"] if resume else []), *others]


def test_the_documentation_names_every_setting_under_what_happens_to_it():
    text = (ROOT / "docs" / "resume.md").read_text()
    for kind in OnResume:
        rows = [line for line in text.splitlines() if line.startswith(f"| {kind.value} |")]
        named = {word for line in rows for word in re.findall(r"`([^`]+)`", line.split("|")[2])}
        meant = {
            name
            for name in SETTINGS
            if any(re.fullmatch(n.replace(".", r"\.").replace("*", ".*"), name) for n in named)
        }
        assert meant == {name for name, row in SETTINGS.items() if row is kind}, kind
