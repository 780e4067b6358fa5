"""The split of a forward pass into encoder and prefill, and teacher + WAP as a Video LLM's encoder."""

import math
import time

import pytest
import torch
from torch import nn

from liteframe.bench.stages import measure
from liteframe.models.teacher.load import load_teacher
from liteframe.reduce.pooled_teacher import PooledTeacher
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x


class FakeVideoLLM(nn.Module):
    """Vision 40 ms, projector 25 ms, language model 10 ms, head 20 ms."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.encoder, self.model.multi_modal_projector = Sleeper(0.04), Sleeper(0.025)
        self.model.language_model, self.head = Sleeper(0.01), Sleeper(0.02)
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, x, use_cache, logits_to_keep):
        self.calls += 1
        assert use_cache
        assert logits_to_keep == 1
        return self.head(self.model.language_model(self.model.multi_modal_projector(self.model.encoder(x))))


def test_vision_projector_and_prefill_are_told_apart():
    model = FakeVideoLLM()
    latency = measure(model, {"x": torch.zeros(1)}, warmup=1, runs=3)
    assert model.calls == 4
    assert 40 <= latency.vision_ms < 65
    assert 25 <= latency.projector_ms < 40
    assert 30 <= latency.prefill_ms < 60
    assert latency.total_ms == pytest.approx(latency.vision_ms + latency.projector_ms + latency.prefill_ms, abs=5)
    assert latency.encoder_ms == latency.total_ms - latency.prefill_ms
    assert latency.peak_mib is None
    assert not model.model.language_model._forward_pre_hooks
    assert not model.model.multi_modal_projector._forward_hooks


def test_pooled_teacher_against_a_loop(tmp_path):
    """WAP by hand, in float64, on what transformers' own tower gives."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vlm = build_model(tokenizer).eval()
    vlm.save_pretrained(tmp_path)
    build_processor(tokenizer).save_pretrained(tmp_path)
    video = torch.randn(1, 6, 3, 64, 64)
    pooled = PooledTeacher(load_teacher(str(tmp_path)))(video).tokens
    with torch.inference_mode():
        tokens = vlm.model.vision_tower(pixel_values=video[0]).last_hidden_state.double()
    assert pooled.shape == (1, 2, 4, 4, 128)
    cls, patches = tokens[:, 0], tokens[:, 1:].unflatten(1, (8, 8))
    for slot, frames in ((0, (0, 1, 2, 3)), (1, (4, 5))):  # the second slot is padded: its copies weigh nothing
        for row, column in ((0, 0), (1, 3), (3, 2)):
            members = [(f, 2 * row + i, 2 * column + j) for f in frames for i in (0, 1) for j in (0, 1)]
            weights = [math.exp(float(cls[f] @ patches[f, y, x]) / math.sqrt(128)) for f, y, x in members]
            expected = sum(w * patches[f, y, x] for w, (f, y, x) in zip(weights, members, strict=True)) / sum(weights)
            assert pooled[0, slot, row, column].double() == pytest.approx(expected, abs=1e-5)
