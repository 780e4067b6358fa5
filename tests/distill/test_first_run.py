"""What a first run prints, and that it starts on the devices that there are."""

import json
import logging
import sys

import pytest
import torch
import yaml

import liteframe  # noqa: F401 - what is tested hangs on its import
from liteframe.training.sharded import fewer_devices


@pytest.mark.parametrize(
    ("gpus", "asked", "batch", "micro", "taken"),
    [
        (0, 8, 64, 8, 1),  # the paper's configuration on a laptop
        (2, 8, 64, 8, 2),
        (3, 8, 64, 8, 2),  # three would not divide the batch
        (5, 8, 64, None, 4),  # eight clips at a time, as on eight GPUs
        (8, 8, 64, 8, None),
        (1, 1, 64, 8, None),
        (2, "8", 30, 5, 2),
    ],
)
def test_fewer_devices_take_the_whole_batch(monkeypatch, gpus, asked, batch, micro, taken):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    settings = {"accelerator": "auto", "devices": asked, "num_nodes": 1}
    assert fewer_devices(settings, batch, micro) == taken
    assert fewer_devices({**settings, "accelerator": "cpu"}, batch, micro) is None  # processes: there are always more
    assert fewer_devices({**settings, "devices": "auto"}, batch, micro) is None


def test_a_configuration_for_eight_gpus_starts_here(fit, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    eight = ["--trainer.accelerator", "auto", "--trainer.devices", 8, "--data.batch_size", 8]
    fit("--run", tmp_path, *eight, "--data.micro_batch_size", 2, "--trainer.max_steps", 1)
    printed = capsys.readouterr().err
    assert "trainer.devices is 8, and there is no GPU here: the CPU takes the whole batch of 8, accumulated" in printed
    for hint in ("GPU available", "Initializing distributed", "Seed set", "Tip"):
        assert hint not in printed
    assert json.loads((tmp_path / "report.json").read_text())["data"]["batch_size"] == 8
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["devices"] == "8"


def test_what_a_user_can_mend_ends_in_one_line(fit, tmp_path, capsys):
    """Python calls the hook with what ends a program; both times, for a run that failed leaves nothing behind."""
    for _ in range(2):
        with pytest.raises(ValueError, match="neither a folder") as raised:
            fit("--run", tmp_path / "run", "--model.teacher.name", tmp_path / "nowhere")
        capsys.readouterr()
        sys.excepthook(raised.type, raised.value, raised.tb)
        printed = capsys.readouterr().err
        assert printed.startswith(
            f"train_ctd.py: {tmp_path / 'nowhere'} is neither a folder with a transformers config"
        )
        assert "Traceback" not in printed


def test_a_gpu_that_is_not_there_is_refused_with_the_remedy(fit, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        fit("--run", tmp_path / "run", "--trainer.accelerator", "gpu")
    assert "accelerator gpu: PyTorch finds no GPU here, of which `liteframe doctor` says" in capsys.readouterr().err


def test_faults_of_the_program_keep_their_traceback(fit, tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="neither a folder"):
        fit("--run", tmp_path / "run", "--model.teacher.name", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="invalid literal") as raised:
        int("no number")  # not a line of ours
    sys.excepthook(raised.type, raised.value, raised.tb)
    assert "Traceback" in capsys.readouterr().err


def test_libraries_say_what_matters_and_nothing_else():
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    for message, stays in (
        ("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you ...", False),
        ("The installed version of bitsandbytes was compiled without GPU support", True),
    ):
        record = logger.makeRecord(logger.name, logging.WARNING, "ops.py", 1, message, ("no",), None)
        assert bool(logger.filter(record)) is stays
