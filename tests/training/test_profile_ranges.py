"""Ranges add up, whatever is nested in what; a bottleneck has the right name and remedy."""

import os
import time

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from liteframe.training.profile_ranges import Communication, HostClock, RangeProfiler, part_of
from liteframe.training.profile_report import Circumstances, sentence, shares, table
from liteframe.training.profile_steps import Measurement


class Ticks:
    """A clock that is told what time it is."""

    now = 0.0

    def mark(self):
        return self.now

    def settle(self):
        pass

    def between(self, first, second):
        return second - first


def test_each_moment_belongs_to_the_innermost_range():
    clock = Ticks()
    profiler = RangeProfiler(clock)

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
        profiler = RangeProfiler(HostClock())
        communication = Communication(profiler)
        model.register_comm_hook(None, communication.hook)
        x = torch.randn(4, 8)
        model(x).square().sum().backward()
        assert communication.seconds() == 0  # not counted before `begin`
        plain.zero_grad()
        profiler.begin()
        began = time.perf_counter()
        model(x).square().sum().backward()
        profiler.end()
        assert 0 < communication.seconds() < time.perf_counter() - began
        expected = torch.autograd.grad(plain(x).square().sum(), list(plain.parameters()))
        for parameter, gradient in zip(plain.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()


def measured(tmp_path, **parts):
    return Measurement(
        steps=10, seconds=sum(parts.values()), parts=parts, clock="host", peak_bytes=0, trace=tmp_path / "x"
    )


@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ({"data": 6.3, "teacher": 3.7}, {"workers": 0}, ["data: 63% waiting", "set data.workers", "JPEG"]),
        ({"data": 5.0, "teacher": 5.0 - 1e-9}, {"workers": 1}, ["data: 50% waiting", "from 1 to about 2"]),
        ({"data": 9.9, "student": 0.1}, {"workers": 64}, ["about 4096 workers", "cores"]),
        ({"data": 6.0, "student": 4.0}, {"workers": 1, "cached_frames": True}, ["data: 60% waiting"]),
        ({"teacher": 3.0, "pooling": 3.0, "student": 4.0}, {"workers": 1}, ["teacher: 60%", "cache", "compile"]),
        (
            {"teacher": 6.0, "student": 4.0},
            {"workers": 1, "compiled": True},
            ["teacher: 60% of a step; a target cache"],
        ),
        ({"student": 2.0, "forward": 1.0, "backward": 4.0, "data": 3.0}, {"workers": 1}, ["student: 70%"]),
        ({"communication": 2.0, "student": 1.0}, {"workers": 1}, ["communication: 67%", "data.batch_size"]),
        ({"optimizer": 2.0, "student": 1.0}, {"workers": 1}, ["optimizer: 67%"]),
        ({"logging": 2.0, "student": 1.0}, {"workers": 1}, ["logging: 67%", "log_every_n_steps"]),
        ({"other": 2.0, "student": 1.0}, {"workers": 1}, ["other: 67%"]),
        ({"transfer": 2.0, "student": 1.0}, {"workers": 1}, ["transfer: 67%"]),
    ],
)
def test_bottleneck(tmp_path, monkeypatch, parts, given, words):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # whatever machine the test has
    found = measured(tmp_path, **parts)
    text = sentence(found, Circumstances(**{"teaches": True, **given}))
    for word in words:
        assert word in text
    assert ("JPEG" in text) == ("data" in text.split(":")[0] and not given.get("cached_frames"))
    assert sum(shares(found).values()) == pytest.approx(1)
    assert "100.0%" in table(found)
