"""A teacher inside a training module: it moves, it never learns, and no checkpoint contains it."""

import torch
from torch import nn

from liteframe import load_teacher
from liteframe.models.teacher.base import Teacher


class Training(nn.Module):
    def __init__(self, teacher):
        super().__init__()
        self.teacher = teacher
        self.student = nn.Linear(2, 2)


def test_absent_from_state_and_parameters_but_moves(vlm_folder):
    training = Training(load_teacher(vlm_folder))
    assert set(training.state_dict()) == {"student.weight", "student.bias"}
    assert len(list(training.parameters())) == 2
    assert Training(load_teacher(vlm_folder)).load_state_dict(training.state_dict(), strict=True)
    training.to(torch.float64)
    assert training.teacher.dtype == torch.float64
    assert next(training.teacher.projector.parameters()).dtype == torch.float64
    assert training.teacher(torch.randn(1, 1, 3, 32, 32)).patches.dtype == torch.float64


def test_train_has_no_effect_and_gradients_stop(vlm_folder):
    training = Training(load_teacher(vlm_folder)).train()
    teacher = training.teacher
    assert not teacher.training
    assert not any(module.training for module in (*teacher.tower.modules(), *teacher.projector.modules()))
    video = torch.randn(1, 1, 3, 32, 32, requires_grad=True)
    assert not teacher(video).patches.requires_grad
    assert not any(p.requires_grad for p in (*teacher.tower.parameters(), *teacher.projector.parameters()))
    # The projector itself lets gradients through to what it projects: losses may be measured behind it.
    features = torch.randn(1, 2, 2, 32, requires_grad=True)
    teacher.projector(features).sum().backward()
    assert features.grad is not None


def test_identity_is_of_the_weights(vlm, vlm_folder, make, tmp_path):
    a, b = load_teacher(vlm_folder), load_teacher(vlm_folder)
    assert a.identity == b.identity
    assert len(a.identity) == 64
    changed = load_teacher(vlm_folder)
    with torch.no_grad():
        changed.tower.model.embeddings.cls_token[0, 0, 0] += 1e-6
    assert changed.identity != a.identity
    assert load_teacher(vlm_folder, dtype=torch.bfloat16).identity != a.identity


def test_default_dtype_is_float32_even_for_half_checkpoints(vlm, make, tmp_path):
    model = make.vlm().bfloat16()
    folder = make.save(model, tmp_path)
    assert load_teacher(folder).dtype == torch.float32
    assert load_teacher(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert isinstance(load_teacher(folder), Teacher)
