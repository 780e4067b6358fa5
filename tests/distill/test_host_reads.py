"""A micro-batch of CTD is sent to the device without waiting for it; the step's end reads once what the guard needs."""

import pytest
import torch
from worlds.host_reads import watch, watched

from liteframe.distill.datamodule import ClipDataModule
from liteframe.distill.module import CTDModule


@pytest.mark.parametrize("clipping", ["channel_clamp", "token_mask", "loss_clip"])
def test_a_micro_batch_reads_nothing_from_the_device(fit, tmp_path, monkeypatch, clipping):
    in_batch, at_end = [], []
    watch(monkeypatch, ClipDataModule, "on_after_batch_transfer", in_batch)
    watch(monkeypatch, CTDModule, "training_step", in_batch)
    watch(monkeypatch, CTDModule, "backward", in_batch)
    watch(monkeypatch, CTDModule, "configure_gradient_clipping", at_end)
    fit(
        *(
            "--run",
            tmp_path,
            "--data.micro_batch_size",
            1,
            "--trainer.max_steps",
            2,
            "--trainer.precision",
            "bf16-mixed",
        ),
        *("--trainer.val_check_interval", 100, "--panel.every_n_steps", 100, "--model.target.clipping", clipping),
    )
    assert in_batch == []
    assert "torch.Tensor.item" in at_end


def test_the_watch_sees_what_waits():
    found = []
    x = torch.arange(4.0)
    for call in (
        lambda: x.sum().item(),
        lambda: x[x > 1],
        lambda: torch.tensor([0.5, 0.5], device=x.device),
        lambda: x.new_tensor([1.0]),
        lambda: bool((x > 1).all()),
        lambda: (x > 1).nonzero(),
        lambda: x.cpu(),
    ):
        before = len(found)
        watched(call, found)()
        assert len(found) > before
    watched(lambda: x.aminmax(), found := [])()
    watched(lambda: torch.tensor(0.5), found)()
    assert found == []
