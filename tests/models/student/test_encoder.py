"""The student against a float64 re-computation with torch's own convolutions and explicit softmax."""

import math

import pytest
import torch
import torch.nn.functional as F
from worlds import students

from liteframe import LiteFrameConfig, LiteFrameEncoder

TINY = {**students.TINY, "heads": 3, "patch_size": 4, "image_size": 32, "teacher_dim": 20, "mlp_dim": 40}


@torch.no_grad()
def scrambled(config, seed=0):
    encoder = LiteFrameEncoder(config).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in encoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return encoder


def reference(encoder, video):
    """One video [T,3,H,W] -> [T/4,h,w,C], from the weights alone."""
    w, c = encoder.state_dict(), encoder.config
    t, (height, width) = len(video), (video.shape[2] // c.patch_size, video.shape[3] // c.patch_size)
    patches = F.conv2d(video, w["patch_embed.weight"], w["patch_embed.bias"], stride=c.patch_size)
    x = torch.cat([w["cls_token"].expand(t, -1, -1), patches.flatten(2).mT], 1) + w["pos_embed"]
    for i in range(c.depth):
        b = {name[len(f"blocks.{i}.") :]: v for name, v in w.items() if name.startswith(f"blocks.{i}.")}
        z = F.layer_norm(x, (c.dim,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, v = (z @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).split(c.dim, -1)
        heads = []
        for h in range(c.heads):
            part = slice(h * c.dim // c.heads, (h + 1) * c.dim // c.heads)
            a = (q[..., part] @ k[..., part].mT / math.sqrt(c.dim / c.heads)).softmax(-1)
            heads.append(a @ v[..., part])
        x = x + b["ls1"] * (torch.cat(heads, -1) @ b["attn.proj.weight"].T + b["attn.proj.bias"])
        if len(x) > 1:
            kernel = b["temporal.weight"]
            x = x + F.conv1d(
                x.permute(1, 2, 0), kernel[:, None], b["temporal.bias"], padding=kernel.shape[1] // 2, groups=c.dim
            ).permute(2, 0, 1)
        z = F.layer_norm(x, (c.dim,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        z = F.gelu(z @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + b["ls2"] * (z @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
        if stride := c.downsample.get(i + 1):
            kernel, bias = w[f"downsample.{i + 1}.weight"], w[f"downsample.{i + 1}.bias"]
            grid = x[:, 1:].unflatten(1, (height, width)).permute(3, 0, 1, 2)
            grid = F.conv3d(grid, kernel[:, None], bias, stride=stride, groups=c.dim)
            cls = F.conv1d(x[:, 0].T, kernel.sum((2, 3))[:, None], bias, stride=stride[0], groups=c.dim)
            height, width = grid.shape[2:]
            x = torch.cat([cls.T[:, None], grid.permute(1, 2, 3, 0).flatten(1, 2)], 1)
    return (x[:, 1:] @ w["head.weight"].T + w["head.bias"]).unflatten(1, (height, width))


def test_parameter_counts_are_the_papers():
    with torch.device("meta"):
        encoder = LiteFrameEncoder(LiteFrameConfig())
    sizes = {name: p.numel() for name, p in encoder.named_parameters()}

    def total(*parts):
        return sum(n for name, n in sizes.items() if any(part in name for part in parts))

    assert sum(sizes.values()) == 87_146_752
    assert total(".temporal.") == 36_864
    assert total("downsample.4.") == 6_912
    assert total("downsample.8.") == 2_304
    assert total("head.") == 787_456


@pytest.mark.parametrize("frames", [8, 4])  # with 4 frames the last block sees a single one
def test_forward_equals_float64_reference(frames):
    encoder = scrambled(LiteFrameConfig(**TINY))
    video = torch.randn(2, frames, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        out = encoder(video)
    assert out.shape == (2, frames // 4, 4, 4, 20)
    for b in range(2):
        torch.testing.assert_close(out[b], reference(encoder, video[b]), rtol=1e-9, atol=1e-9)


def test_other_strides_and_widths_come_from_the_config():
    config = LiteFrameConfig(**TINY | {"downsample": {3: (1, 2, 4), 1: (4, 1, 1)}, "temporal_kernel": 5})
    assert config.compression == (4, 2, 4)
    encoder = scrambled(config)
    video = torch.randn(1, 8, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(encoder(video)[0], reference(encoder, video[0]), rtol=1e-9, atol=1e-9)


def test_new_student_is_a_frame_wise_vit_with_mean_pooling():
    config = LiteFrameConfig(**TINY | {"downsample": {3: (4, 2, 2)}})
    encoder = LiteFrameEncoder(config).double()
    plain = LiteFrameEncoder(LiteFrameConfig(**TINY | {"downsample": {}, "temporal_mixer": "none"})).double()
    report = plain.load_state_dict(encoder.state_dict(), strict=False)
    assert not report.missing_keys
    video = torch.randn(1, 8, 3, 32, 32, dtype=torch.float64)
    frames = plain(video)  # [1,8,8,8,C]
    mean = frames.reshape(1, 2, 4, 4, 2, 4, 2, 20).mean((2, 4, 6))
    torch.testing.assert_close(encoder(video), mean)


def test_padding_repeats_the_last_frame():
    encoder = scrambled(LiteFrameConfig(**TINY))
    video = torch.randn(1, 5, 3, 32, 32, dtype=torch.float64)
    padded = torch.cat([video, video[:, -1:].repeat(1, 3, 1, 1, 1)], 1)
    out = encoder(video)
    assert out.shape[1] == 2
    torch.testing.assert_close(out, encoder(padded))
    assert encoder(video[:, :1]).shape == (1, 1, 4, 4, 20)


def test_batch_entries_do_not_mix():
    encoder = scrambled(LiteFrameConfig(**TINY))
    a, b = torch.randn(2, 1, 4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(encoder(torch.cat([a, b])), torch.cat([encoder(a), encoder(b)]))


def test_other_sizes_resample_positions():
    encoder = scrambled(LiteFrameConfig(**TINY))
    assert encoder(torch.randn(1, 4, 3, 48, 16, dtype=torch.float64)).shape == (1, 1, 6, 2, 20)
    # Positions that are linear along the rows stay linear, and the cls position is untouched.
    rows = torch.arange(8.0, dtype=torch.float64).repeat_interleave(8)
    with torch.no_grad():
        encoder.pos_embed[:, 1:] = rows[None, :, None]
    table = encoder._positions((16, 8))
    torch.testing.assert_close(table[:, 0], encoder.pos_embed[:, 0])
    inner = table[0, 1:, 0].unflatten(0, (16, 8))[4:-4, 0]
    torch.testing.assert_close(inner, torch.arange(4.0, 12.0, dtype=torch.float64) / 2 - 0.25, rtol=0, atol=0.02)


def test_gradients_reach_every_parameter():
    encoder = scrambled(LiteFrameConfig(**TINY))
    encoder(torch.randn(1, 8, 3, 32, 32, dtype=torch.float64)).square().mean().backward()
    # After the last strided conv the cls row still feeds attention; in the very last block it feeds nothing more.
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 3, 32, 32), "\\[B,T,3,H,W\\]"),
        ((1, 0, 3, 32, 32), "T >= 1"),
        ((1, 4, 1, 32, 32), "\\[B,T,3,H,W\\]"),
        ((1, 4, 3, 36, 32), "36x32.*multiple of 8"),
    ],
)
def test_bad_input_is_named(shape, words):
    with pytest.raises(ValueError, match=words):
        LiteFrameEncoder(LiteFrameConfig(**TINY))(torch.zeros(shape))


def test_raw_pixels_are_refused():
    with pytest.raises(ValueError, match=r"normalized.*uint8"):
        LiteFrameEncoder(LiteFrameConfig(**TINY))(torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8))


def test_autocast_stays_close_and_compiles_without_a_break():
    encoder = LiteFrameEncoder(LiteFrameConfig(**TINY))
    video = torch.randn(1, 8, 3, 32, 32)
    exact = encoder(video)
    with torch.autocast("cpu", torch.bfloat16):
        close = encoder(video)
    assert torch.nn.functional.cosine_similarity(exact.flatten(), close.float().flatten(), dim=0) > 0.999
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video), exact)


def test_exports_with_dynamic_clips_and_frames():
    encoder = LiteFrameEncoder(LiteFrameConfig(**TINY)).eval()
    batch, groups = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("groups", min=2, max=16)
    program = torch.export.export(
        encoder, (torch.randn(2, 8, 3, 32, 32),), dynamic_shapes=({0: batch, 1: 4 * groups},), strict=False
    )
    video = torch.randn(3, 12, 3, 32, 32)
    torch.testing.assert_close(program.module()(video), encoder(video))
