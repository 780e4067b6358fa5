import pytest
import torch
from torch import nn

from liteframe.distill.standardise import Standardiser
from liteframe.distill.statistics import FeatureStatistics

KINDS = ["channel", "phi_s", "none"]


def fitted(kind, channels=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    mixing[:, 0] *= 50
    data = torch.randn(4000, channels, generator=generator, dtype=torch.float64) @ mixing + 3
    statistics = FeatureStatistics(channels, full=True)
    statistics.update(data)
    standardiser = Standardiser(channels, kind).double()
    standardiser.fit(statistics)
    return standardiser, data


@pytest.mark.parametrize("kind", KINDS)
def test_inverse_is_exact(kind):
    standardiser, data = fitted(kind)
    assert torch.allclose(standardiser.inverse(standardiser(data)), data, atol=1e-9)
    single = standardiser.float()
    back = single.inverse(single(data.float()))
    assert (back - data).abs().max() < 1e-5 * data.abs().max()


@pytest.mark.parametrize("kind", ["channel", "phi_s"])
def test_every_channel_has_unit_variance(kind):
    standardiser, data = fitted(kind)
    out = standardiser(data)
    assert torch.allclose(out.mean(0), torch.zeros(12, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(out.var(0, correction=0), torch.ones(12, dtype=torch.float64), atol=1e-9)


def test_phi_s_keeps_geometry_up_to_one_scale():
    standardiser, data = fitted("phi_s")
    out = standardiser(data)
    ratio = torch.pdist(out[:40]) / torch.pdist(data[:40])
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-9)


def test_phi_s_against_the_formula():
    """W = (1/phi) H U^T with phi^2 the mean eigenvalue (methods 18.1)."""
    standardiser, data = fitted("phi_s")
    covariance = torch.cov(data.T, correction=0)
    mapping = standardiser.forward_map
    phi = covariance.diagonal().mean().sqrt()
    assert torch.allclose(mapping @ mapping.T, torch.eye(12, dtype=torch.float64) / phi**2, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_fold_and_unfold(kind):
    standardiser, _ = fitted(kind)
    standardiser = standardiser.float()
    head, x = nn.Linear(7, 12), torch.randn(50, 7)
    expected = standardiser.inverse(head(x))
    folded = nn.Linear(7, 12)
    folded.load_state_dict(head.state_dict())
    standardiser.fold(folded)
    assert (folded(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    standardiser.unfold(folded)
    assert torch.allclose(folded.weight, head.weight, atol=1e-5)
    assert torch.allclose(folded.bias, head.bias, atol=1e-4)


def test_constant_channel_does_not_explode():
    data = torch.randn(100, 4)
    data[:, 2] = 7
    statistics = FeatureStatistics(4)
    statistics.update(data)
    standardiser = Standardiser(4, "channel")
    standardiser.fit(statistics)
    assert standardiser(data).abs().max() < 10
    assert standardiser(data + 1e-4).abs().max() < 10


def test_unknown_kind():
    with pytest.raises(ValueError, match="zca"):
        Standardiser(4, "zca")
