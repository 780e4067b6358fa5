"""The tower of GLM-4.1V, 4.5V and 4.6V as a teacher: pairs of frames, in the order of Qwen-VL's towers."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from liteframe.models.teacher.qwen import QwenTower
from liteframe.models.teacher.vit_weights import REMEDY, VitWeights

# By model_type of the vision config.
GLM_TOWERS = ("glm4v_vision", "glm4v_moe_vision")


class Glm4vTower(QwenTower):
    """Its hidden states after the last norm, before the convolution by which it merges patches."""

    def __init__(self, model: Any):
        super().__init__(model)
        self.image_size = model.config.image_size

    @override
    def hidden(self, pixels: Tensor, grid: Tensor) -> Tensor:
        # Its positions are those of images: each pair is one, as in transformers' own get_video_features.
        pairs = torch.nn.functional.pad(grid[:, 1:], (1, 0), value=1).repeat_interleave(grid[:, 0], dim=0)  # [B*t,3]
        kept: list[Tensor] = []
        hook = self.model.post_layernorm.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            self.model(pixels, grid_thw=pairs)
        finally:
            hook.remove()
        return kept[0]

    @override
    def vit_weights(self) -> VitWeights:
        raise ValueError(
            f"the teacher normalizes tokens before its first block (post_conv_layernorm), a student not, {REMEDY}"
        )
