"""cost() against the paper's digits and against torch's own FLOP counter on meta tensors."""

import math

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from worlds.students import student_config

from liteframe import LiteFrameConfig, LiteFrameEncoder, cost
from liteframe.models.student.cost import INTERNVIT_300M, VIT_BASE, VitShape

TINY = student_config(heads=3, patch_size=4, image_size=32, teacher_dim=20, mlp_dim=40)


def counted(model, *video):
    """(linear and convolution, attention products) as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for clip in video:
            model(clip)
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    # Fused, or taken apart into batched products; nothing else here is batched.
    attention = sum(n for op, n in counts.items() if "attention" in op or "bmm" in op)
    return counter.get_total_flops() - attention, attention


def test_the_papers_three_rows():
    student, plain, teacher = cost(LiteFrameConfig()), cost(VIT_BASE), cost(INTERNVIT_300M)
    assert (student.params, plain.params, teacher.params) == (87_146_752, 86_313_216, 304_012_288)
    assert student.flops / 1e12 == pytest.approx(17.9206, abs=5e-5)
    assert round(plain.flops / 1e12, 2) == 44.81
    assert round(teacher.flops / 1e12, 2) == 158.80
    assert round((student.flops + student.attention_flops) / 1e12, 1) == 21.4
    assert round((teacher.flops + teacher.attention_flops) / 1e12, 1) == 185.2
    ratio = (teacher.flops + teacher.attention_flops) / (student.flops + student.attention_flops)
    assert round(ratio, 2) == 8.66
    assert (student.tokens_per_frame, teacher.tokens_per_frame) == (16, 256)


@pytest.mark.parametrize(("frames", "size"), [(8, (32, 32)), (4, (32, 32)), (8, (48, 16)), (21, (32, 32))])
def test_student_against_torchs_counter(frames, size):
    with torch.device("meta"):
        model = LiteFrameEncoder(TINY)
        clips = [min(8, frames - first) for first in range(0, frames, 8)]
        linear, attention = counted(model, *(torch.empty(1, clip, 3, *size) for clip in clips))
    # torch's counter does not see the depthwise convs, which run as shifted additions.
    depthwise = 0
    for clip in clips:
        t, (h, w) = math.ceil(clip / 4) * 4, (size[0] // 4, size[1] // 4)
        for block in (1, 2, 3):
            depthwise += 2 * 3 * 24 * t * (h * w + 1) * (t > 1)
            if block == 1:
                t, h, w = t // 2, h // 2, w // 2
                depthwise += 2 * 24 * t * (8 * h * w + 2)
            if block == 2:
                t = t // 2
                depthwise += 2 * 24 * t * (2 * h * w + 2)
    ours = cost(TINY, frames, size)
    assert ours.flops == linear + depthwise
    assert ours.attention_flops == attention
    assert ours.params == sum(p.numel() for p in model.parameters())


def test_a_still_costs_less_than_a_clip_of_its_copies():
    """By hand: block 1 on 64 patches, the others on 16, a tap a conv over time, the strides over space."""
    with torch.device("meta"):
        linear, attention = counted(LiteFrameEncoder(TINY).still, torch.empty(3, 3, 32, 32))
    depthwise = 2 * 24 * (65 + 17 + 17) + 2 * 24 * (4 * 16 + 1) + 2 * 24 * (16 + 1)
    ours = cost(TINY, 3, still=True)
    assert (ours.flops, ours.attention_flops) == (linear + 3 * depthwise, attention)
    assert ours.tokens_per_frame == 4 * cost(TINY).tokens_per_frame
    still, repeated = (cost(LiteFrameConfig(), 1, still=still) for still in (True, False))
    assert (round(still.flops / 1e9, 1), round(repeated.flops / 1e9, 1)) == (88.5, 280.0)


def test_teacher_against_torchs_counter():
    shape = VitShape(dim=32, depth=2, mlp_dim=128, patch_size=14, image_size=56)
    with torch.device("meta"):
        model = timm.create_model(
            "vit_intern300m_patch14_448",
            pretrained=False,
            num_classes=0,
            embed_dim=32,
            depth=2,
            num_heads=4,
            img_size=56,
        )
        linear, attention = counted(model, torch.empty(3, 3, 56, 56))
    ours = cost(shape, frames=3)
    assert (ours.flops, ours.attention_flops) == (linear, attention)
    assert ours.params == sum(p.numel() for p in model.parameters())


def test_without_mixer_or_strides():
    config = LiteFrameConfig(temporal_mixer="none", downsample={}, teacher_dim=768)
    extra = 768 * 768 + 768
    assert cost(config).params == cost(VIT_BASE).params + extra
    assert cost(config).flops == cost(VIT_BASE).flops + 2 * 256 * 1024 * 768 * 768


def test_bad_arguments():
    with pytest.raises(ValueError, match="frames must be at least 1"):
        cost(TINY, 0)
    with pytest.raises(ValueError, match="30x32 pixels: height must be a multiple of 8"):
        cost(TINY, 8, (30, 32))
