"""At every moment of a save, a resumed run finds a whole checkpoint."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from liteframe.files import OutOfSpaceError, durable_file
from liteframe.training.checkpoint import rng_state, set_rng_state
from liteframe.training.checkpoint_folder import AtomicCheckpointIO, CheckpointFolder, tensor_bytes
from liteframe.training.run_folder import RunFolder


def save(folder, step):
    io, previous = AtomicCheckpointIO(), next(iter(folder.named()), None)
    io.save_checkpoint({"step": step, "weights": torch.full((1000,), float(step))}, folder.file(step))
    folder.add(step, io.written.bytes, io.written.sha256, previous)


def found_step(folder):
    path, notes = folder.find_whole()
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    assert (checkpoint["weights"] == checkpoint["step"]).all()
    return checkpoint["step"], notes


@pytest.fixture
def folder(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        save(folder, step)
    return folder


def test_the_newest_two_stay_and_last_is_the_newest(folder):
    assert sorted(os.listdir(folder.path)) == ["last.ckpt", "manifest.json", "step-2.ckpt", "step-3.ckpt"]
    assert torch.load(folder.last, weights_only=True)["step"] == 3
    assert found_step(folder) == (3, [])
    line = json.loads(folder.manifest.read_text())["checkpoints"][0]
    assert line["bytes"] == folder.file(3).stat().st_size
    assert line["step"] == 3
    assert os.popen(f"sha256sum {folder.file(3)}").read().split()[0] == line["sha256"]


class Killed(BaseException):
    pass


def die_at(monkeypatch, fatal):
    """Every call that changes the disk counts; the `fatal`-th is not made, and nothing is after it."""
    made = []

    def guard(name, call):
        def counted(*arguments, **keywords):
            if len(made) >= fatal:
                raise Killed
            made.append((name, str(arguments[0])))
            return call(*arguments, **keywords)

        return counted

    for name in ("fsync", "replace", "symlink"):
        monkeypatch.setattr(os, name, guard(name, getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", guard("unlink", Path.unlink))
    return made


def test_a_kill_between_any_two_calls_loses_nothing(folder, tmp_path, monkeypatch):
    steps, fatal = [], 0
    while not steps or steps[-1] != "survived":
        copy = CheckpointFolder(tmp_path / f"killed{fatal}")
        shutil.copytree(folder.path, copy.path, symlinks=True)
        with monkeypatch.context() as patch:
            made = die_at(patch, fatal)
            try:
                save(copy, 4)
                outcome = "survived"
            except Killed:
                outcome = "killed"
        step, notes = found_step(copy)
        assert not notes
        steps.append(step)
        copy.clean()
        save(copy, 5)  # life goes on
        assert found_step(copy) == (5, [])
        assert not list(copy.path.glob(".*"))
        if outcome == "survived":
            steps.append("survived")
        fatal += 1
    assert steps[:2] == [3, 3]
    assert steps == [*sorted(steps[:-1]), "survived"]  # 3, 3, ... 4, 4, never back
    names = [name for name, _ in made]
    # File, rename and folder reach the disk before the manifest does; the old file goes last.
    assert names[:3] == ["fsync", "replace", "fsync"]
    assert "step-4" in made[1][1]
    assert "manifest" in next(path for name, path in made[2:] if name == "replace")
    assert made[-1] == ("unlink", str(copy.path.parent / f"killed{fatal - 1}" / "step-2.ckpt"))


@pytest.mark.parametrize("damage", ["bit", "short", "long", "gone"])
def test_a_damaged_newest_is_told_and_passed_over(folder, damage):
    path = folder.file(3)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        middle = bytes([content[500] ^ 1])
        path.write_bytes(
            {"bit": content[:500] + middle + content[501:], "short": content[:-1], "long": content + b"0"}[damage]
        )
    step, notes = found_step(folder)
    assert step == 2
    assert "step-3.ckpt (step 3)" in notes[0]
    folder.file(2).unlink()
    with pytest.raises(ValueError, match=r"no checkpoint is whole.*step-3.*step-2"):
        folder.find_whole()


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"checkpoints": [{"file": "step-3.ckpt"}]}',
        '{"checkpoints": [{"file": "../step-3.ckpt", "step": 3, "bytes": 1, "sha256": ""}]}',
        '{"checkpoints": [{"file": "/etc/passwd", "step": 3, "bytes": 1, "sha256": ""}]}',
    ],
)  # fmt: skip
def test_a_manifest_that_was_not_written_here_is_refused(folder, text):
    folder.manifest.write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
        folder.find_whole()


def test_without_a_manifest_last_is_taken_with_a_word(folder):
    folder.manifest.unlink()
    folder.clean()  # a run does, before it reads what it goes on from
    step, notes = found_step(folder)
    assert step == 3
    assert "cannot be checked" in notes[0]
    folder.file(3).write_bytes(folder.file(3).read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole archive"):
        folder.find_whole()


def test_no_checkpoint_is_no_error(tmp_path):
    assert CheckpointFolder(tmp_path).find_whole() == (None, [])


def test_a_file_system_without_links(folder, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    save(folder, 4)
    assert not folder.last.is_symlink()
    assert torch.load(folder.last, weights_only=True)["step"] == 4


def test_left_overs_of_killed_processes_are_removed(folder):
    run = RunFolder(folder.path.parent)
    (run.path / ".adapter.7.tmp").mkdir()
    run.encoder.mkdir()
    left = [run.path / ".report.json.7.tmp", run.encoder / ".model.safetensors.7.tmp",
            folder.path / ".step-4.ckpt.7.tmp", folder.file(4)]  # fmt: skip
    for path in left:
        path.touch()
    run.clean()
    assert not any(path.exists() for path in [*left, run.path / ".adapter.7.tmp"])
    assert found_step(folder) == (3, [])


@contextlib.contextmanager
def small_files():
    """No file of this process grows beyond 4000 bytes: a write fails in the middle, as on a full disk.

    Not a fixture: what pytest itself writes to a file must find the limit gone.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_is_told_with_sizes(folder):
    words = rf"{folder.file(4)} needs at least 400,000 bytes, and [\d,]+ bytes are free"
    with pytest.raises(OutOfSpaceError, match=words), small_files():
        AtomicCheckpointIO().save_checkpoint({"weights": torch.zeros(100_000)}, folder.file(4))
    assert not list(folder.path.glob("*4*"))
    assert found_step(folder) == (3, [])


def test_a_disk_that_is_full_at_the_flush(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutOfSpaceError, match="No space left"), durable_file(tmp_path / "x", needed=1) as file:
        file.write(b"x")
    assert not os.listdir(tmp_path)


def test_other_errors_stay_what_they_are(tmp_path):
    def fail(file):
        file.write(b"x")
        raise RuntimeError("not the disk")

    with pytest.raises(RuntimeError, match="not the disk"), durable_file(tmp_path / "x") as file:
        fail(file)
    assert not os.listdir(tmp_path)


def test_tensors_that_share_memory_count_once():
    weights = torch.zeros(100)
    assert tensor_bytes({"a": weights, "b": [weights[:10], 3, "x"], "c": torch.zeros(1, dtype=torch.uint8)}) == 401


def test_generators_continue_from_a_checkpoint(tmp_path):
    cpu = torch.device("cpu")

    def draw():
        return [torch.rand(3).tolist(), np.random.standard_normal(3).tolist(), random.gauss(0, 1), random.random()]

    draw()  # leaves a second normal number in two of the generators
    AtomicCheckpointIO().save_checkpoint({"rng": rng_state(cpu)}, tmp_path / "x")
    wanted = [draw(), draw()]
    torch.manual_seed(9), np.random.seed(9), random.seed(9)
    set_rng_state(AtomicCheckpointIO().load_checkpoint(tmp_path / "x")["rng"], cpu)
    assert [draw(), draw()] == wanted
