"""Temporal mixers of the ablations, against loops in float64, the counts of the specification and torch's counter."""

import math

import pytest
import torch
import torch.nn.functional as F
from liteframe_export.graph import TRACEABLE
from torch.utils.flop_counter import FlopCounterMode
from worlds.students import make_student, student_config

from liteframe import LiteFrameConfig, LiteFrameEncoder, cost
from liteframe.models.student.mixers import MIXERS
from liteframe.models.student.weight_selection import select_from_student

NEW = ("attn", "attn_block", "dense", "spacetime")
SHAPE = student_config(dim=12, heads=3)


def mixer_of(name):
    mixer, generator = MIXERS[name](SHAPE).double(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return mixer.eval()


def attention_by_hand(x, weights):
    """[T,C] -> [T,C], by explicit softmax, head by head."""
    q, k, v = (x @ weights["attn.qkv.weight"].T + weights["attn.qkv.bias"]).split(12, -1)
    heads = [
        (q[:, part] @ k[:, part].T / math.sqrt(4)).softmax(-1) @ v[:, part]
        for part in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    return torch.cat(heads, -1) @ weights["attn.proj.weight"].T + weights["attn.proj.bias"]


def by_hand(name, x, w):
    """One position over time, [T,C] -> [T,C]."""
    if name == "dense":
        padded = F.pad(x, (0, 0, 1, 1))
        return x + torch.stack(
            [sum(w["weight"][..., k] @ padded[t + k] for k in range(3)) + w["bias"] for t in range(len(x))]
        )
    if name == "attn":
        return x + w["ls"] * attention_by_hand(F.layer_norm(x, (12,), w["norm.weight"], w["norm.bias"], 1e-6), w)
    x = x + attention_by_hand(F.layer_norm(x, (12,), w["norm1.weight"], w["norm1.bias"], 1e-6), w)
    hidden = F.layer_norm(x, (12,), w["norm2.weight"], w["norm2.bias"], 1e-6) @ w["mlp.fc1.weight"].T
    return x + F.gelu(hidden + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


@pytest.mark.parametrize("name", ["attn", "attn_block", "dense"])
def test_a_mixer_equals_a_loop_over_positions(name):
    mixer, x = mixer_of(name), torch.randn(2, 4, 5, 12, dtype=torch.float64)
    found = mixer(x)
    for video in range(2):
        for position in range(5):
            expected = by_hand(name, x[video, :, position], mixer.state_dict())
            torch.testing.assert_close(found[video, :, position], expected, rtol=1e-10, atol=1e-10)


def test_spacetime_attends_to_all_tokens_of_a_clip():
    mixer, x = MIXERS["spacetime"](SHAPE), torch.randn(2, 3, 5, 12)
    seen = []
    found = mixer.attend(lambda sets: seen.append(sets) or 2 * sets, x)
    assert torch.equal(seen[0][1], torch.cat([x[1, 0], x[1, 1], x[1, 2]]))
    assert torch.equal(found, 2 * x)
    assert mixer(x) is x


@pytest.mark.parametrize("name", NEW)
def test_a_new_student_is_the_one_without_mixer(name):
    """But for spacetime, whose attention sees more from the start."""
    encoder = LiteFrameEncoder(student_config(temporal_mixer=name)).eval()
    plain = make_student(student_config(temporal_mixer="none")).eval()
    encoder.load_state_dict(plain.state_dict(), strict=False)
    video = torch.randn(1, 4, 3, 64, 64)
    same = torch.allclose(encoder(video), plain(video), atol=1e-4, rtol=1e-4)
    assert same == (name != "spacetime")


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
    "downsample", [{1: (2, 2, 2), 2: (2, 1, 1)}, {1: (3, 1, 2)}], ids=["strides of the paper", "others"]
)
def test_a_still_is_an_inner_slot_of_a_long_video_of_equal_frames(name, downsample):
    """In float64; of 30 frames no border reaches the slot in the middle."""
    config = student_config(temporal_mixer=name, downsample=downsample, clip_frames=12)
    encoder = make_student(config).double().eval()
    image = torch.randn(2, 3, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        slots = encoder(image[:, None].expand(-1, 30, -1, -1, -1))
        found = encoder.still(image)
        repeated = encoder(image[:, None])
    torch.testing.assert_close(found, slots[:, slots.shape[1] // 2, None], rtol=1e-9, atol=1e-9)
    same = torch.allclose(repeated, found, rtol=1e-6)  # a slot by itself has borders, and mixers skip a single frame
    assert same == (name in ("none", "spacetime"))


@pytest.mark.parametrize("name", MIXERS)
def test_a_single_frame_passes_and_every_parameter_takes_part(name):
    mixer, x = mixer_of(name).train(), torch.randn(1, 1, 5, 12, dtype=torch.float64)
    found = mixer(x)
    assert torch.equal(found, x)
    assert all(weight.grad is None for weight in mixer.parameters())
    if list(mixer.parameters()):
        found.sum().backward()
        assert all(weight.grad is not None and not weight.grad.any() for weight in mixer.parameters())
        mixer.still(x).square().sum().backward()
        assert all(weight.grad.any() for weight in mixer.parameters())


@pytest.mark.parametrize(
    ("name", "params", "tera"),
    [("attn", 115_485_952, 23.7989), ("attn_block", 143_834_368, 29.6828), ("dense", 108_352_768, 22.3279),
     ("spacetime", 87_109_888, 17.9149), ("none", 87_109_888, 17.9149)],
)  # fmt: skip
def test_counts_of_the_paper_s_shape(name, params, tera):
    row = cost(LiteFrameConfig(temporal_mixer=name))
    assert (row.params, round(row.flops / 1e12, 4)) == (params, tera)


def test_products_of_attention_over_a_clip():
    extra = [
        (cost(LiteFrameConfig(temporal_mixer="spacetime", clip_frames=frames)).attention_flops) / 1e12
        for frames in (4, 16)
    ]
    assert [round(value, 1) for value in extra] == [13.5, 53.9]


@pytest.mark.parametrize("name", NEW)
def test_cost_against_torchs_counter(name):
    config = student_config(temporal_mixer=name, downsample={})
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder = LiteFrameEncoder(config)
        encoder(torch.empty(1, 8, 3, 64, 64))
    counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counts.items() if "attention" in op or "bmm" in op)
    row = cost(config, 8)
    assert row.params == sum(weight.numel() for weight in encoder.parameters())
    assert (row.flops, row.attention_flops) == (counter.get_total_flops() - attention, attention)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.still(torch.empty(2, 3, 64, 64))
    row = cost(config, 2, still=True)
    assert row.flops + row.attention_flops == counter.get_total_flops()


@pytest.mark.parametrize("name", NEW)
def test_a_smaller_student_takes_part_of_each_parameter(name):
    large = make_student(student_config(dim=16, heads=4, temporal_mixer=name)).eval()
    video = torch.randn(1, 8, 3, 64, 64)
    same = select_from_student(large, large.config).eval()
    assert torch.equal(same(video), large(video))
    small = select_from_student(large, student_config(dim=8, heads=2, temporal_mixer=name))
    for ours, theirs in zip(small.blocks[0].temporal.parameters(), large.blocks[0].temporal.parameters(), strict=True):
        assert set(ours.flatten().tolist()) <= set(theirs.flatten().tolist())


@pytest.mark.parametrize("name", ["attn", "attn_block", "dense"])
def test_the_traceable_form_computes_the_same(name):
    mixer = mixer_of(name)
    inputs = [torch.randn(*shape, 5, 12, dtype=torch.float64) for shape in ((1, 1), (2, 3))]
    expected = [mixer(x) for x in inputs]
    mixer.__class__ = TRACEABLE[type(mixer)]
    for x, wanted in zip(inputs, expected, strict=True):
        torch.testing.assert_close(mixer(x), wanted)


def test_a_kernel_without_effect_is_refused():
    with pytest.raises(ValueError, match=r"temporal_kernel=5 has no effect with temporal_mixer='attn'"):
        LiteFrameConfig(temporal_mixer="attn", temporal_kernel=5)
