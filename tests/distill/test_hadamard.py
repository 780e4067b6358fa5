import pytest
import torch

from liteframe.distill.standardize import equalizing_rotation, hadamard


# Widths of teachers, and the smallest order of each construction (methods 18.1).
@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 28, 36, 128, 768, 1024, 1152, 1280])
def test_hadamard_is_orthogonal_with_entries_of_one(size):
    matrix = hadamard(size)
    assert matrix.abs().eq(1).all()
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 6, 50, 100, 92])
def test_other_sizes_get_an_orthogonal_matrix(size):
    rotation = equalizing_rotation(size)
    assert torch.allclose(rotation @ rotation.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert torch.equal(rotation, equalizing_rotation(size))


@pytest.mark.parametrize("size", [3, 5, 6, 7, 10, 14, 22])
def test_impossible_sizes(size):
    assert hadamard(size) is None
