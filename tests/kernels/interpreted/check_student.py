"""The student with its kernels on and off: the same outputs and gradients."""

import pytest
import torch
from liteframe_kernels import force_backend, temporal_conv

from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder

CONFIG = LiteFrameConfig(
    dim=16, depth=3, heads=2, patch_size=4, image_size=16, teacher_dim=8, downsample={2: (2, 2, 2), 3: (2, 1, 1)}
)


def run(backend, dtype):
    torch.manual_seed(0)
    encoder = LiteFrameEncoder(CONFIG)
    for name, parameter in encoder.named_parameters():
        if "temporal" in name or "downsample" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    encoder.to(dtype)
    video = torch.randn(2, 6, 3, 16, 16).to(dtype).requires_grad_()
    with force_backend(backend):
        out = torch.cat([encoder(video), encoder.still(video[:, 0])], 1)
        out.float().square().mean().backward()
    return [out.detach(), video.grad, *(p.grad for p in encoder.parameters())]


def distance(got, want):
    return [
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-6))
        for a, b in zip(got, want, strict=True)
    ]


def test_float32():
    assert max(distance(run("triton", torch.float32), run("reference", torch.float32))) < 1e-4


# The interpreter rounds to float16 as a GPU does, but truncates to bfloat16, whose errors then all point one way.
@pytest.mark.parametrize(("dtype", "times"), [(torch.float16, 1.3), (torch.bfloat16, 3)])
def test_half_precision_differs_no_more_than_by_its_own_error(dtype, times):
    exact = run("reference", torch.float32)
    off, on = distance(run("reference", dtype), exact), distance(run("triton", dtype), exact)
    assert 0 < on[0] < times * off[0]
    assert sum(on) < times * sum(off)


def test_forcing_ends_with_its_block():
    x, weight = torch.randn(1, 3, 2, 4), torch.randn(4, 3)
    with force_backend("triton"), pytest.raises(ValueError, match=r"x is torch\.int32"):
        temporal_conv(x.int(), weight)
    with pytest.raises(ValueError, match="backend is 'cuda'"), force_backend("cuda"):
        pass
    grad_fn = temporal_conv(x.requires_grad_(), weight).grad_fn
    with force_backend("triton"):
        assert temporal_conv(x, weight).grad_fn.name() != grad_fn.name()
