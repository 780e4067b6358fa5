"""What a signal does, and when a SLURM job goes back into the queue."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from liteframe.data.video.process import serve_parent
from liteframe.training.signals import STOP_SIGNALS, StopRequest


@pytest.fixture
def stop():
    request = StopRequest()
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with request.listening():
        yield request
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_training_a_signal_ends_the_run_at_once(stop, number):
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_in_training_it_waits_and_a_second_ctrl_c_does_not(stop):
    alone = SimpleNamespace(world_size=1)
    stop.defer()
    assert stop.agreed(alone) is None
    signal.raise_signal(signal.SIGINT)
    assert stop.agreed(alone) == signal.SIGINT
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGINT)
    assert ended.value.code == 130


def test_signals_that_others_took_are_taken_back(stop):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop.defer()
    signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM


@pytest.mark.parametrize(
    ("number", "wanted", "environment", "calls"),
    [
        (signal.SIGUSR1, True, {}, ["requeue 4711"]),
        (signal.SIGTERM, True, {"STUB_EXIT": "1"}, ["requeue 4711"]),
        (signal.SIGTERM, True, {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, ["requeue 12_3"]),
        (signal.SIGTERM, False, {}, []),  # without --resume it would refuse its own folder
        (signal.SIGINT, True, {}, []),  # a person said stop
        (signal.SIGTERM, True, {"SLURM_JOB_NAME": "interactive"}, []),
    ],
)
def test_which_jobs_requeue(stop, slurm, monkeypatch, capsys, number, wanted, environment, calls):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stop.requeue = wanted
    with pytest.raises(SystemExit) as ended:
        stop.leave(number, "stopped")
    assert ended.value.code == 128 + number
    assert slurm() == calls
    told = capsys.readouterr().err
    assert ("is requeued" in told) == (bool(calls) and "STUB_EXIT" not in environment)
    assert ("NOT requeued: scontrol requeue 4711: exit code 1" in told) == ("STUB_EXIT" in environment)


def test_without_scontrol_the_run_still_ends_as_it_should(stop, slurm, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nonexistent")
    stop.requeue = True
    with pytest.raises(SystemExit):
        stop.leave(signal.SIGTERM, "stopped")
    assert "NOT requeued" in capsys.readouterr().err


def test_workers_and_decoders_outlive_the_signals_of_their_job():
    """SLURM signals every process of a job; a dead worker would end the run before it could save."""
    child = os.fork()
    if child == 0:
        serve_parent()
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7

    decoder = subprocess.Popen(
        [sys.executable, "-m", "liteframe.data.video.child", str(os.getpid())], stdin=subprocess.PIPE
    )
    status = f"/proc/{decoder.pid}/status"
    ignored = sum(1 << (number - 1) for number in STOP_SIGNALS)
    for _ in range(600):
        with open(status) as file:
            mask = next(int(line.split()[1], 16) for line in file if line.startswith("SigIgn"))
        if mask & ignored == ignored:
            break
        time.sleep(0.1)
    for number in STOP_SIGNALS:
        decoder.send_signal(number)
    assert decoder.poll() is None
    decoder.stdin.close()
    assert decoder.wait(timeout=60) == 0


def test_a_process_that_ends_with_workers_left_does_not_wait_for_them():
    """A loader in a cycle, as a traceback makes one, is still there when Python ends; its workers ignore SIGTERM."""
    program = """
import sys
from torch.utils.data import DataLoader
from liteframe.data.video.process import serve_parent
batches = iter(DataLoader(range(1000), num_workers=1, worker_init_fn=serve_parent))
next(batches)
sys.cycle = [batches]
sys.cycle.append(sys.cycle)
raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (3, "")
