"""A smaller student cut from a larger one: exact at equal shape, whole heads, one set of channels, stage by stage."""

import dataclasses

import pytest
import torch

from liteframe import LiteFrameConfig, LiteFrameEncoder
from liteframe.models.student.weight_selection import select_from_student

LARGE = LiteFrameConfig(
    dim=32, depth=6, heads=4, mlp_dim=64, patch_size=8, image_size=32, teacher_dim=20, clip_frames=8,
    downsample={2: (2, 2, 2), 5: (2, 1, 1)},
)  # fmt: skip


@pytest.fixture(scope="module")
def large():
    model = LiteFrameEncoder(LARGE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def smaller(**changes):
    return dataclasses.replace(LARGE, **changes)


def test_equal_shape_repeats_the_larger_student_exactly(large):
    video = torch.randn(2, 8, 3, 32, 32)
    copy = select_from_student(large, LARGE)
    assert torch.equal(copy(video), large(video))
    with torch.no_grad():
        next(copy.parameters()).zero_()
    assert large.patch_embed.weight.all()  # the weights are not shared


def test_unused_channels_heads_and_blocks_change_nothing(large):
    """A large student built to compute on the kept heads, MLP channels and blocks only gives what the cut one gives."""
    config = smaller(dim=16, heads=2, mlp_dim=32, depth=4, downsample={1: (2, 2, 2), 3: (2, 1, 1)})
    # LayerNorm over 32 channels of which each value appears twice equals LayerNorm over the 16.
    twin = LiteFrameEncoder(LARGE).eval()
    cut = select_from_student(large, config).eval()
    kept, heads, hidden = [2 * i for i in range(16)], [0, 2], [2 * i for i in range(32)]
    rows = [8 * h + i for h in heads for i in range(8)]
    small, state = cut.state_dict(), {name: torch.zeros_like(t) for name, t in twin.state_dict().items()}
    double = [i // 2 for i in range(32)]

    def put(name, tensor):
        assert state[name].shape == tensor.shape
        state[name] = tensor

    for name in ("patch_embed.weight", "patch_embed.bias"):
        put(name, small[name][double])
    for name in ("cls_token", "pos_embed"):
        put(name, small[name][..., double])
    # Blocks 1, 3, 4, 6 of six are the first of stages 1-2, 3-5 and 6; blocks 2 and 5 pass their input on.
    for ours, theirs in enumerate([0, 2, 3, 5]):
        a, b = f"blocks.{ours}.", f"blocks.{theirs}."
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1", "ls2", "temporal.weight",
                     "temporal.bias", "attn.proj.bias", "mlp.fc2.bias"):  # fmt: skip
            put(b + name, small[a + name][double])
        for part in range(3):
            there = [32 * part + row for row in rows]
            weight = small[a + "attn.qkv.weight"][16 * part : 16 * part + 16]
            state[b + "attn.qkv.weight"][there] = weight[:, double] / 2
            state[b + "attn.qkv.bias"][there] = small[a + "attn.qkv.bias"][16 * part : 16 * part + 16]
        state[b + "attn.proj.weight"][:, rows] = small[a + "attn.proj.weight"][double]
        state[b + "mlp.fc1.weight"][hidden] = small[a + "mlp.fc1.weight"][:, double] / 2
        state[b + "mlp.fc1.bias"][hidden] = small[a + "mlp.fc1.bias"]
        state[b + "mlp.fc2.weight"][:, hidden] = small[a + "mlp.fc2.weight"][double]
    for ours, theirs in ((1, 2), (3, 5)):
        for name in ("weight", "bias"):
            put(f"downsample.{theirs}.{name}", small[f"downsample.{ours}.{name}"][double])
    put("head.weight", small["head.weight"][:, double] / 2)
    put("head.bias", small["head.bias"])
    twin.load_state_dict(state)
    video = torch.randn(1, 8, 3, 32, 32)
    torch.testing.assert_close(cut(video), twin(video), rtol=1e-4, atol=1e-4)

    # And what was kept is what the larger one has at these places.
    whole = large.state_dict()
    for ours, theirs in enumerate([0, 2, 3, 5]):
        a, b = f"blocks.{ours}.", f"blocks.{theirs}."
        qkv = torch.cat([whole[b + "attn.qkv.weight"][32 * part : 32 * part + 32][rows] for part in range(3)])
        assert torch.equal(small[a + "attn.qkv.weight"], qkv[:, kept])
        assert torch.equal(small[a + "attn.proj.weight"], whole[b + "attn.proj.weight"][kept][:, rows])
        assert torch.equal(small[a + "mlp.fc1.weight"], whole[b + "mlp.fc1.weight"][hidden][:, kept])
        assert torch.equal(small[a + "mlp.fc2.weight"], whole[b + "mlp.fc2.weight"][kept][:, hidden])
        assert torch.equal(small[a + "temporal.weight"], whole[b + "temporal.weight"][kept])
        assert torch.equal(small[a + "ls2"], whole[b + "ls2"][kept])
    assert torch.equal(small["downsample.1.weight"], whole["downsample.2.weight"][kept])
    assert torch.equal(small["downsample.3.bias"], whole["downsample.5.bias"][kept])
    assert torch.equal(small["head.weight"], whole["head.weight"][:, kept])
    assert torch.equal(small["head.bias"], whole["head.bias"])
    assert torch.equal(small["pos_embed"], whole["pos_embed"][..., kept])


def test_a_student_without_mixer_and_strides_keeps_the_first_blocks():
    config = LiteFrameConfig(dim=12, depth=4, heads=3, mlp_dim=20, patch_size=8, image_size=16, teacher_dim=6,
                             clip_frames=1, downsample={}, temporal_mixer="none")  # fmt: skip
    large = LiteFrameEncoder(config)
    for number, block in enumerate(large.blocks):
        torch.nn.init.constant_(block.ls1, number)
    cut = select_from_student(large, dataclasses.replace(config, depth=2, dim=8, heads=2, mlp_dim=20))
    assert [block.ls1[0].item() for block in cut.blocks] == [0, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 64, "heads": 4, "mlp_dim": 128}, r"dim \(student 64, encoder 32\).*mlp_dim \(student 128, encoder 64"),
        ({"heads": 8}, r"heads \(student 8, encoder 4\)"),
        ({"depth": 7}, r"blocks 6-7 \(in the encoder this stage is 6-6\)"),
        ({"downsample": {3: (2, 2, 2), 5: (2, 1, 1)}}, r"blocks 1-3 \(in the encoder this stage is 1-2\)"),
        ({"downsample": {2: (4, 2, 2)}}, r"strides of downsample"),
        ({"temporal_mixer": "none"}, r"temporal_mixer \('none', in the encoder 'conv'\)"),
        ({"temporal_kernel": 5, "patch_size": 16}, r"patch_size \(16, in the encoder 8\), temporal_kernel \(5, in"),
        ({"teacher_dim": 24}, r"teacher_dim \(24, in the encoder 20\)"),
    ],
)
def test_what_cannot_be_cut_is_named(large, changes, words):
    with pytest.raises(ValueError, match=words):
        select_from_student(large, smaller(**changes))
