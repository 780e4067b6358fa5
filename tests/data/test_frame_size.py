"""The size of a frame in its own aspect ratio, against a search in float64 over all sizes within the budget."""

import math

import pytest
import torch

from liteframe.data.preprocess import FrameTransform
from liteframe.frame_size import frame_size
from liteframe.models.student.config import LiteFrameConfig


def searched(height, width, side, step):
    """The nearest aspect ratio among the sizes that no further row and no further column fits into, or beside."""
    most = side * side / step / step
    full = [
        (rows, columns)
        for rows in range(1, int(most) + 1)
        for columns in range(1, int(most) + 1)
        if rows * columns <= most and ((rows + 1) * columns > most or rows * (columns + 1) > most)
    ]
    rows, columns = min(full, key=lambda grid: (abs(math.log(grid[1] / grid[0] * height / width)), -math.prod(grid)))
    return rows * step, columns * step


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1920, 1080), (560, 336)),  # 9:16, a phone held upright
        ((1080, 1920), (336, 560)),
        ((1000, 2390), (280, 672)),  # 2.39:1
        ((480, 640), (392, 504)),
        ((300, 300), (448, 448)),
        ((448, 448), (448, 448)),
    ],
)
def test_448_pixels_squared_in_tokens_of_56(shape, size):
    assert frame_size(*shape, (448, 448), "aspect", (56, 56)) == size == searched(*shape, 448, 56)
    assert frame_size(*shape, (448, 448), "squash", (56, 56)) == (448, 448)


@pytest.mark.parametrize("side", [16, 40, 56])
def test_every_shape(side):
    for height in range(40, 90, 3):
        for width in range(30, 120, 7):
            size = frame_size(height, width, (side, side), "aspect", (8, 8))
            assert size == searched(height, width, side, 8)
            assert frame_size(*size, (side, side), "aspect", (8, 8)) == size  # what has its size keeps it


def test_elongated_and_unknown():
    assert frame_size(10, 640, (80, 80), "aspect", (10, 10)) == (10, 640)
    with pytest.raises(ValueError, match=r"10x641 pixels .* too elongated for 80x80 .* stands for 10x10; cut"):
        frame_size(10, 641, (80, 80), "aspect", (10, 10))
    with pytest.raises(ValueError, match="no pixels"):
        frame_size(0, 5, (80, 80), "squash")
    with pytest.raises(ValueError, match="'pad'; choose one of squash, crop, aspect"):
        frame_size(5, 5, (80, 80), "pad")


def test_config_knows_what_a_projector_merges():
    assert LiteFrameConfig(resize="aspect", merge_size=2).pixel_multiple == (56, 56)
    with pytest.raises(ValueError, match=r"image_size=420 .* = \(56, 56\) .* merges 2x2 tokens"):
        LiteFrameConfig(image_size=420, resize="aspect", merge_size=2)
    with pytest.raises(ValueError, match="merge_size=2 does nothing where resize is 'squash'"):
        LiteFrameConfig(merge_size=2)


def test_a_crop_goes_to_the_size_of_its_video():
    transform = FrameTransform(64, (0.5,) * 3, (0.5,) * 3, "aspect", (16, 16))
    cut = torch.zeros(2, 30, 31, 3, dtype=torch.uint8)
    assert transform.resized(cut).shape == (2, 3, 64, 64)
    assert transform.resized(cut, (48, 80)).shape == (2, 3, 48, 80)
