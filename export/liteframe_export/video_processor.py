"""Preprocessing of encoders that were trained on centre crops, as a transformers video processor.

Travels inside exported models: imports torchvision and transformers, nothing else.
"""

from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as F
from transformers import InternVLVideoProcessor
from transformers.image_utils import SizeDict


class LiteFrameVideoProcessor(InternVLVideoProcessor):
    """InternVLVideoProcessor that cuts the same centre as liteframe.data.preprocess.FrameTransform.

    Where an odd number of pixels is cut off, transformers' own center_crop cuts one pixel beside torchvision's.
    """

    def center_crop(self, image: Tensor, size: SizeDict, **kwargs: Any) -> Tensor:
        """[...,H,W] -> [...,size.height,size.width]."""
        return F.center_crop(image, [size.height, size.width])
