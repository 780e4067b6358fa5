import pytest
import torch
from torch import nn

from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import Standardizer

KINDS = ["channel", "none"]


def fitted(kind, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    mixing[:, 0] *= 50
    data = torch.randn(4000, channels, generator=generator, dtype=torch.float64) @ mixing + 3
    statistics = RunningStatistics(channels)
    statistics.update(data)
    standardizer = Standardizer(channels, kind).double()
    standardizer.fit(statistics.freeze())
    return standardizer, data


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_is_exact(kind):
    standardizer, data = fitted(kind)
    assert torch.allclose(standardizer.inverse(standardizer(data)), data, atol=1e-9)
    single = standardizer.float()
    back = single.inverse(single(data.float()))
    assert (back - data).abs().max() < 1e-5 * data.abs().max()


def test_every_channel_has_unit_variance():
    standardizer, data = fitted("channel")
    out = standardizer(data)
    assert torch.allclose(out.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(out.var(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_fold_and_unfold(kind):
    standardizer, _ = fitted(kind)
    standardizer = standardizer.float()
    head, x = nn.Linear(7, 12), torch.randn(50, 7)
    expected = standardizer.inverse(head(x))
    folded = nn.Linear(7, 12)
    folded.load_state_dict(head.state_dict())
    standardizer.fold(folded)
    assert (folded(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    standardizer.unfold(folded)
    assert torch.allclose(folded.weight, head.weight, atol=1e-5)
    assert torch.allclose(folded.bias, head.bias, atol=1e-4)


def test_constant_channel_does_not_explode():
    data = torch.randn(100, 4)
    data[:, 2] = 7
    statistics = RunningStatistics(4)
    statistics.update(data)
    standardizer = Standardizer(4, "channel")
    standardizer.fit(statistics.freeze())
    assert standardizer(data).abs().max() < 10
    assert standardizer(data + 1e-4).abs().max() < 10


def test_unknown_kind():
    with pytest.raises(ValueError, match="zca"):
        Standardizer(4, "zca")
