import math

import pytest
import torch

from liteframe.distill.losses import batch_loss, clip_losses, drop_large_losses, token_losses

SHAPE = (2, 3, 2, 2, 5)


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))


def loop(name, p, t):
    channels = len(p)
    mse = sum((a - b) ** 2 for a, b in zip(p, t, strict=True)) / channels
    huber = sum(0.5 * d * d if d < 1 else d - 0.5 for d in (abs(a - b) for a, b in zip(p, t, strict=True))) / channels
    dot = sum(a * b for a, b in zip(p, t, strict=True))
    cosine = dot / math.sqrt(sum(a * a for a in p) * sum(b * b for b in t))
    return {"mse": mse, "smooth_l1": huber, "cosine+smooth_l1": 0.9 * (1 - cosine) + 0.1 * huber}[name]


@pytest.mark.parametrize("name", ["mse", "smooth_l1", "cosine+smooth_l1"])
def test_against_loops(name):
    prediction, target = pair()
    losses = token_losses(prediction, target, name)
    for index in [(0, 0, 0, 0), (1, 2, 1, 0), (0, 1, 1, 1)]:
        expected = loop(name, prediction[index].tolist(), target[index].tolist())
        assert losses[index].item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_raised():
    prediction, target = pair()
    assert token_losses(prediction.bfloat16(), target.float(), "mse").dtype == torch.float32


def test_errors():
    prediction, target = pair()
    with pytest.raises(ValueError, match="l0"):
        token_losses(prediction, target, "l0")
    with pytest.raises(ValueError, match="target is"):
        token_losses(prediction, target[:1], "mse")


def test_masked_tokens_do_not_count():
    losses = torch.arange(24.0).reshape(2, 3, 2, 2)
    weight = torch.ones_like(losses)
    weight[0, 1:] = 0
    weight[1] = 0
    assert clip_losses(losses, weight).tolist() == [1.5, 0.0]


def test_three_sigma_loss_clip():
    losses = torch.ones(1, 1, 10, 10)
    losses[..., 0, 0] = 50
    losses[..., 9, 9] = 1000
    weight = torch.ones_like(losses)
    weight[..., 9, 9] = 0  # a masked token neither counts nor sets the limit
    kept = drop_large_losses(losses, weight, 3.0)
    assert kept[0, 0, 0, 0] == 0
    assert kept.sum() == 98


@pytest.mark.parametrize("name", ["mse", "smooth_l1", "cosine+smooth_l1"])
def test_accumulation_1x8_equals_2x4(name):
    """Also when clips failed: three of the eight, unevenly."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(8, 4, 5, generator=generator), torch.randn(8, 3, 2, 2, 6, generator=generator)
    good = torch.tensor([1, 1, 1, 1, 0, 0, 1, 0], dtype=torch.bool)
    weight = torch.rand(8, 3, 2, 2, generator=generator)

    def gradient(chunks):
        layer = torch.nn.Linear(20, 72)
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        for rows in torch.arange(8).chunk(chunks):
            rows = rows[good[rows]]
            prediction = layer(x[rows].flatten(1)).unflatten(1, (3, 2, 2, 6))
            per_clip = clip_losses(token_losses(prediction, target[rows], name), weight[rows])
            (batch_loss(per_clip, micro_batch_size=8 // chunks) / chunks).backward()
        return layer.weight.grad

    assert torch.allclose(gradient(1), gradient(2), rtol=1e-5, atol=1e-7)
    assert torch.allclose(gradient(1), gradient(8), rtol=1e-5, atol=1e-7)
