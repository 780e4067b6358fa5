"""A micro-batch of LMA is sent to the device without waiting for it, and no mask of L x L is made."""

import torch
import torch.nn.functional as F
from worlds.host_reads import watch

from liteframe.align.datamodule import ChatDataModule
from liteframe.align.module import LMAModule


def test_a_micro_batch_reads_nothing_from_the_device(run, lma_world, tmp_path, monkeypatch):
    in_batch, at_end, masks = [], [], []
    watch(monkeypatch, ChatDataModule, "on_after_batch_transfer", in_batch)
    watch(monkeypatch, LMAModule, "training_step", in_batch)
    watch(monkeypatch, LMAModule, "backward", in_batch)
    watch(monkeypatch, LMAModule, "configure_gradient_clipping", at_end)
    attention = F.scaled_dot_product_attention

    def noted(*args, **kwargs):
        masks.append(kwargs.get("attn_mask"))
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    wide = ("--data.micro_batch_size", 2, "--data.batch_size", 4)  # rows of different lengths in one batch
    run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / "run", *wide)
    assert in_batch == []
    assert "torch.Tensor.item" in at_end
    assert masks
    assert all(mask is None for mask in masks)
