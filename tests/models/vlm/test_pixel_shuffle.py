"""Pixel shuffle: the vector of the reference file, rectangular grids, bad grids."""

import pytest
import torch

from liteframe.models.vlm.internvl import pixel_shuffle, shuffle_factor


def test_channel_order_is_v2():
    row, col, ch = torch.meshgrid(torch.arange(4), torch.arange(6), torch.arange(3), indexing="ij")
    out = pixel_shuffle((100 * row + 10 * col + ch).unsqueeze(0))
    assert out.shape == (1, 2, 3, 12)
    assert out[0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert out[0, 1, 2].tolist() == [240, 241, 242, 250, 251, 252, 340, 341, 342, 350, 351, 352]


def test_equals_transformers_on_square_grids(vlm):
    x = torch.randn(3, 4, 4, 32)
    torch.testing.assert_close(pixel_shuffle(x), vlm.model.pixel_shuffle(x, 0.5), rtol=0, atol=0)


def test_odd_grids_are_refused():
    with pytest.raises(ValueError, match="3x4 token grid"):
        pixel_shuffle(torch.zeros(1, 3, 4, 8))


def test_ratio():
    assert [shuffle_factor(r) for r in (1.0, 0.5, 0.25)] == [1, 2, 4]
    with pytest.raises(ValueError, match=r"0.4 is not 1/n"):
        shuffle_factor(0.4)
