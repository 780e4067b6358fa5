import numpy as np
import torch

from liteframe.distill.metrics import HeldOutMetrics


def data(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(3, 2, 2, 2, 5, generator=generator) * torch.tensor([1, 1, 1, 10, 1.0]) + 100
    return target + 0.3 * torch.randn(target.shape, generator=generator), target


def test_against_numpy():
    metrics = HeldOutMetrics(5, projected=True)
    slots = torch.tensor([[True, True], [True, False], [True, True]])
    students, targets = [], []
    for seed in range(3):
        student, target = data(seed)
        metrics.update(student, target, slots, lambda x: x.flatten(1, 2)[..., :2] - 100)
        students.append(student[slots].double().numpy())
        targets.append(target[slots].double().numpy())
    ours, theirs = np.concatenate(students), np.concatenate(targets)

    def cosine(a, b):
        return ((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).mean()

    explained = 1 - (theirs - ours).reshape(-1, 5).var(0) / theirs.reshape(-1, 5).var(0)
    values = {name: value.item() for name, value in metrics.compute().items()}
    np.testing.assert_allclose(values["token_cosine"], cosine(ours, theirs), rtol=1e-6)
    np.testing.assert_allclose(values["explained_variance_mean"], explained.mean(), rtol=1e-6)
    np.testing.assert_allclose(values["explained_variance_median"], np.median(explained), rtol=1e-6)
    np.testing.assert_allclose(
        values["projected_cosine"], cosine(ours[..., :2] - 100, theirs[..., :2] - 100), rtol=1e-4
    )


def test_no_clip_gives_no_figure():
    metrics = HeldOutMetrics(5, projected=False)
    nothing = torch.empty(0, 1, 1, 1, 5)
    metrics.update(nothing, nothing, torch.empty(0, 1, dtype=torch.bool))
    assert metrics.compute() == {}
    metrics.reset()
    target = data(0)[1]
    metrics.update(target, target, torch.ones(3, 2, dtype=torch.bool))
    assert metrics.compute()["explained_variance_mean"] == 1
