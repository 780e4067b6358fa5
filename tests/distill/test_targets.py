import math

import pytest
import torch

from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetNormalizer, TargetSettings


def builder(clipping, data, **kwargs):
    statistics = RunningStatistics(data.shape[-1])
    statistics.update(data.flatten(0, -2))
    made = TargetNormalizer(data.shape[-1], TargetSettings(clipping=clipping, standardize="none", **kwargs))
    assert not made.ready
    made.fit(statistics.freeze())
    assert made.ready
    return made


@pytest.fixture
def pooled():
    data = torch.randn(3, 2, 4, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 2, 3, 4, 50.0])
    data[0, 0, 0, 0] = torch.tensor([40, -90, 0, 0, 0.0])
    return data


SLOTS = torch.tensor([[True, True], [True, False], [True, True]])


def test_channel_clamp(pooled):
    target = builder("channel_clamp", pooled)(pooled, SLOTS)
    flat = pooled.flatten(0, -2).double()
    low, high = flat.mean(0) - 3 * flat.std(0, correction=0), flat.mean(0) + 3 * flat.std(0, correction=0)
    changed = total = 0
    for b in range(3):
        for t in range(2):
            for token in range(16):
                y, x = divmod(token, 4)
                for c in range(5):
                    value = float(pooled[b, t, y, x, c])
                    expected = min(max(value, float(low[c])), float(high[c]))
                    assert target.values[b, t, y, x, c] == pytest.approx(expected, rel=1e-5, abs=1e-5)
                    if SLOTS[b, t]:
                        changed += expected != value
                        total += 1
    assert changed >= 2
    assert target.clipped.item() == pytest.approx(changed / total)
    assert target.weight[1, 1].sum() == 0
    assert target.weight.sum() == 5 * 16


def test_clipped_fraction_of_gaussian_features():
    data = torch.randn(8, 4, 16, 16, 8, generator=torch.Generator().manual_seed(0))
    target = builder("channel_clamp", data)(data, torch.ones(8, 4, dtype=torch.bool))
    assert target.clipped.item() == pytest.approx(1 - math.erf(3 / math.sqrt(2)), abs=5e-4)


def test_token_mask(pooled):
    pooled[2, 1, 3, 3] *= 100
    made = builder("token_mask", pooled)
    target = made(pooled, SLOTS)
    norms = pooled.flatten(0, -2).double().norm(dim=1)
    large = (pooled.double().norm(dim=-1) > norms.mean() + 3 * norms.std(correction=0)) & SLOTS[:, :, None, None]
    assert large[2, 1, 3, 3]
    assert torch.equal(target.weight == 0, large | ~SLOTS[:, :, None, None])
    assert target.clipped.item() == pytest.approx(large.sum().item() / 80)
    assert torch.equal(target.values, pooled)


@pytest.mark.parametrize("clipping", ["none", "loss_clip"])
def test_other_modes_leave_targets_alone(pooled, clipping):
    target = builder(clipping, pooled)(pooled, SLOTS)
    assert torch.equal(target.values, pooled)
    assert target.clipped == 0


def test_statistics_travel_in_the_state_dict(pooled):
    made = builder("channel_clamp", pooled)
    again = TargetNormalizer(5, made.settings)
    again.load_state_dict(made.state_dict())
    assert again.ready
    assert torch.equal(again(pooled, SLOTS).values, made(pooled, SLOTS).values)


def test_unusable_statistics():
    statistics = RunningStatistics(3)
    with pytest.raises(ValueError, match="0 tokens"):
        TargetNormalizer(3, TargetSettings()).fit(statistics.freeze())
    statistics.update(torch.full((5, 3), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        TargetNormalizer(3, TargetSettings()).fit(statistics.freeze())


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"target\.sigmas"):
        TargetSettings(sigmas=0)
    with pytest.raises(ValueError, match=r"target\.statistics_clips"):
        TargetSettings(statistics_clips=0)
