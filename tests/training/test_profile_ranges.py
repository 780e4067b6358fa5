"""Ranges add up, whatever is nested in what; the bottleneck is named."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from liteframe.training import profile_ranges
from liteframe.training.profile_ranges import RangeProfiler, part_of
from liteframe.training.profile_run import Measurement


def test_each_moment_belongs_to_the_innermost_range(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(profile_ranges, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    profiler = RangeProfiler()

    def spend(seconds):
        clock.now += seconds

    profiler.start("[Strategy]S.training_step")  # opened before counting: no time of its own yet
    spend(100)
    profiler.begin()
    spend(1)
    with profiler.profile("teacher"):
        spend(2)
        with profiler.profile("[LightningModule]M.unknown_hook"):
            spend(4)
            with profiler.profile("pooling"):
                spend(8)
    profiler.stop("[Strategy]S.training_step")
    spend(16)

    def fail():
        spend(32)
        profiler.start("metrics")
        spend(64)
        raise KeyError

    with pytest.raises(KeyError), profiler.profile("student"):
        fail()
    spend(128)
    assert profiler.end() == {"forward": 1, "teacher": 6, "pooling": 8, "other": 144, "student": 32, "logging": 64}
    spend(1)
    with profiler.profile("teacher"):  # not counted any more
        spend(1)
    profiler.begin()
    assert profiler.end() == {"other": 0}


@pytest.mark.parametrize(
    ("action", "part"),
    [
        ("[_TrainingEpochLoop].train_dataloader_next", "data"),
        ("[LightningDataModule]ClipDataModule.on_after_batch_transfer", "transfer"),
        ("[Strategy]DDPStrategy.batch_to_device", "transfer"),
        ("[Strategy]DDPStrategy.backward", "backward"),
        ("[LightningModule]CTDModule.optimizer_step", "optimizer"),
        ("[Callback]FeaturePanel.on_train_batch_end", "logging"),
        ("[LightningModule]CTDModule.on_train_batch_start", None),
        ("run_training_batch", None),
    ],
)
def test_names_of_lightning(action, part):
    assert part_of(action) == part


def test_communication_averages_like_ddp_and_is_timed(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        plain = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
        model = DistributedDataParallel(plain)
        profiler = RangeProfiler()
        model.register_comm_hook(None, profiler.communication_hook)
        x = torch.randn(4, 8)
        model(x).square().sum().backward()
        plain.zero_grad()
        profiler.begin()
        began = time.perf_counter()
        loss = model(x).square().sum()
        with profiler.profile("[Strategy]DDPStrategy.backward"):
            loss.backward()
        parts = profiler.end()
        whole = time.perf_counter() - began
        assert 0 < parts["communication"] < whole
        assert 0 <= parts["backward"] < whole - parts["communication"]
        profiler.begin()
        assert "communication" not in profiler.end()  # that was counted
        expected = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
        for parameter, gradient in zip(plain.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"data": 6.3, "teacher": 3.7}, "data: 63% waiting"),
        ({"data": 5.0, "teacher": 5.0 - 1e-9}, "data: 50% waiting"),
        ({"teacher": 3.0, "pooling": 3.0, "student": 4.0}, "teacher: 60% of a step"),
        ({"student": 2.0, "forward": 1.0, "backward": 4.0, "data": 3.0}, "student: 70% of a step"),
        ({"communication": 2.0, "student": 1.0}, "communication: 67% of a step"),
        ({"optimizer": 2.0, "student": 1.0}, "optimizer: 67% of a step"),
        ({"logging": 2.0, "student": 1.0}, "logging: 67% of a step"),
        ({"other": 2.0, "student": 1.0}, "other: 67% of a step"),
        ({"transfer": 2.0, "student": 1.0}, "transfer: 67% of a step"),
    ],
)
def test_bottleneck(parts, words):
    measured = Measurement(steps=10, seconds=sum(parts.values()), parts=parts, clock="host", peak_bytes=0)
    assert measured.sentence() == words
    assert sum(measured.shares().values()) == pytest.approx(1)
    assert "100.0%" in measured.table()
