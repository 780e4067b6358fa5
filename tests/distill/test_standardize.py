import pytest
import torch
from torch import nn

from liteframe.distill.standardize import Standardizer
from liteframe.distill.statistics import FeatureStatistics

KINDS = ["channel", "phi_s", "none"]


def fitted(kind, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    mixing[:, 0] *= 50
    data = torch.randn(4000, channels, generator=generator, dtype=torch.float64) @ mixing + 3
    statistics = FeatureStatistics(channels, full=True)
    statistics.update(data)
    standardizer = Standardizer(channels, kind).double()
    standardizer.fit(statistics)
    return standardizer, data


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_is_exact(kind):
    standardizer, data = fitted(kind)
    assert torch.allclose(standardizer.inverse(standardizer(data)), data, atol=1e-9)
    single = standardizer.float()
    back = single.inverse(single(data.float()))
    assert (back - data).abs().max() < 1e-5 * data.abs().max()


@pytest.mark.parametrize("kind", ["channel", "phi_s"])
def test_every_channel_has_unit_variance(kind):
    standardizer, data = fitted(kind)
    out = standardizer(data)
    assert torch.allclose(out.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(out.var(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-9)


def test_phi_s_keeps_geometry_up_to_one_scale():
    standardizer, data = fitted("phi_s")
    out = standardizer(data)
    ratio = torch.pdist(out[:40]) / torch.pdist(data[:40])
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-9)


def test_phi_s_against_the_formula():
    """W = (1/phi) H U^T with phi^2 the mean eigenvalue (methods 18.1)."""
    standardizer, data = fitted("phi_s")
    covariance = torch.cov(data.T, correction=0)
    mapping = standardizer.forward_map
    phi = covariance.diagonal().mean().sqrt()
    assert torch.allclose(mapping @ mapping.T, torch.eye(12, dtype=torch.float64) / phi**2, atol=1e-9)


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
    statistics = FeatureStatistics(4)
    statistics.update(data)
    standardizer = Standardizer(4, "channel")
    standardizer.fit(statistics)
    assert standardizer(data).abs().max() < 10
    assert standardizer(data + 1e-4).abs().max() < 10


def test_unknown_kind():
    with pytest.raises(ValueError, match="zca"):
        Standardizer(4, "zca")
