"""Preprocessing of encoders whose frames are not squashed, as transformers video processors.

Travels inside exported models: imports torchvision, transformers and liteframe.frame_size, nothing else.
"""

from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as F
from transformers import InternVLVideoProcessor
from transformers.image_utils import SizeDict

from liteframe.frame_size import frame_size


class LiteFrameVideoProcessor(InternVLVideoProcessor):
    """InternVLVideoProcessor that cuts the same centre as liteframe.data.preprocess.FrameTransform.

    Where an odd number of pixels is cut off, transformers' own center_crop cuts one pixel beside torchvision's.
    """

    def center_crop(self, image: Tensor, size: SizeDict, **kwargs: Any) -> Tensor:
        """[...,H,W] -> [...,size.height,size.width]."""
        return F.center_crop(image, [size.height, size.width])


class LiteFrameAspectVideoProcessor(InternVLVideoProcessor):
    """InternVLVideoProcessor that keeps each video's aspect ratio; videos of different shape go in one by one.

    `size` is the budget of pixels, `multiple` (down, across) what the sides are multiples of.
    """

    multiple: Any

    def resize(self, image: Tensor, size: SizeDict, *args: Any, **kwargs: Any) -> Tensor:
        """[...,H,W] -> [...,h,w], see `frame_size`."""
        height, width = image.shape[-2:]
        wanted = frame_size(height, width, (size.height, size.width), "aspect", tuple(self.multiple))
        return super().resize(image, SizeDict(height=wanted[0], width=wanted[1]), *args, **kwargs)
