"""Mild augmentation of a clip: one crop and one flip, the same for all of its frames."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Augmentation:
    """Random resized crop and horizontal flip; the resize itself is the teacher's own, afterwards.

    Attributes:
        crop_area: smallest and largest part of the frame's area that is kept; (1, 1) keeps the whole frame.
        crop_ratio: smallest and largest change of the crop's aspect ratio, relative to the frame's.
        flip: probability of a horizontal flip; 0 where left and right mean something.
    """

    crop_area: tuple[float, float] = (0.6, 1.0)
    crop_ratio: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5

    def __post_init__(self) -> None:
        """Refuse ranges that make no crop."""
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ValueError(f"augment.crop_area is {self.crop_area}; it must rise within (0, 1]")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise ValueError(f"augment.crop_ratio is {self.crop_ratio}; it must be two rising positive numbers")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augment.flip is {self.flip}; it is a probability")


def draw_view(
    height: int, width: int, settings: Augmentation, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], bool]:
    """Box of a random crop of a frame, and whether the crop is flipped."""
    return crop_box(height, width, settings, rng), bool(rng.random() < settings.flip)


def crop_box(height: int, width: int, settings: Augmentation, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels of a random crop of a frame."""
    area = rng.uniform(*settings.crop_area)
    ratio = math.exp(rng.uniform(*np.log(settings.crop_ratio)))
    box_height = min(height, max(1, round(height * min(1.0, math.sqrt(area / ratio)))))
    box_width = min(width, max(1, round(width * min(1.0, math.sqrt(area * ratio)))))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    return top, left, box_height, box_width
