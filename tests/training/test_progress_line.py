import sys
import time
from types import SimpleNamespace

import pytest

from liteframe.training.report import ProgressLine, duration


def trainer(steps):
    return SimpleNamespace(
        global_step=0, max_steps=steps, max_epochs=-1, accumulate_grad_batches=1, world_size=1,
        callback_metrics={"train/loss": 0.5}, datamodule=SimpleNamespace(steps_per_epoch=lambda: 10),
    )  # fmt: skip


def drive(line, steps=4, wait=0.03, work=0.01):
    fake, module = trainer(steps), SimpleNamespace(log=lambda *_: None)
    line.on_train_start(fake, module)
    for number in range(steps):
        time.sleep(wait)
        line.on_train_batch_start(fake, module, [1, 2, 3], number)
        time.sleep(work)
        fake.global_step += 1
        line.on_train_batch_end(fake, module, None, [1, 2, 3], number)
    line.on_train_end(fake, module)


def test_plain_lines_off_a_terminal(capsys):
    line = ProgressLine({"loss": "train/loss", "other": "train/other"}, count=len, unit="clips")
    drive(line)
    lines = capsys.readouterr().err.splitlines()
    # The first and the last; nothing in between within ten seconds, and no control characters.
    assert [text.split("  ")[0] for text in lines] == ["step 1/4", "step 4/4"]
    assert all("\r" not in text and "loss 0.5" in text and "other" not in text for text in lines)
    for words in ("clips/s", "waiting", "ETA 0:00:00"):
        assert words in lines[-1]


def test_a_terminal_sees_one_changing_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    drive(ProgressLine({}, count=len, unit="clips"))
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.startswith("\rstep 1/4")


def test_waiting_is_measured(capsys):
    line = ProgressLine({}, count=len, unit="clips")
    drive(line, wait=0.06, work=0.02)
    summary = line.summary()
    assert summary["train_seconds"] >= 0.3
    assert 0.5 < summary["data_wait_share"] < 0.9
    assert summary["clips_per_second"] == pytest.approx(12 / summary["train_seconds"], rel=0.01)
    resumed = ProgressLine({}, count=len, unit="clips")
    resumed.load_state_dict(line.state_dict())
    assert resumed.summary() == summary


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (1e5, "27:46:40")])
def test_duration(seconds, text):
    assert duration(seconds) == text
