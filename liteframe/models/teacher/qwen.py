"""Towers of the Qwen-VL kind as teachers: features of pairs of frames, saliency from the attention received.

Shapes: B videos, T frames, t = ceil(T / 2) pairs, (h,w) patch grid, C channels.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.base import Saliency, TeacherFeatures, Tower
from liteframe.models.teacher.saliency import AttentionWatch
from liteframe.models.teacher.vit_weights import VitWeights, vit_weights
from liteframe.models.vlm.pair_tower import PAIR, patchified, raster, whole_frame_block

IMAGE_SIZE = 448  # pixels, where nobody says otherwise: these towers take any size

# By model_type of the vision config.
QWEN_TOWERS = ("qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_5_vision")
OF_THE_LANGUAGE_MODEL = ("merger.", "deepstack_merger_list.")  # names of what lies behind the blocks


class QwenTower(Tower):
    """transformers' tower of a Qwen2.5-VL, Qwen3-VL or Qwen3.5: its last hidden states before the merger, as a grid.

    Of an odd number of frames the last one is repeated, as transformers' processors do. The attention received is that
    of the last block that sees whole frames.

    Args:
        model: transformers' tower.
        deepstack: whether its patches hold what its inner blocks give the language model, too: [B,t,h,w,(1+n)*C], the
            last block's first, then in the order of the blocks.

    Raises:
        ValueError: deepstack is asked of a tower without.
    """

    temporal_patch, cls, prefix = PAIR, 0, 0
    saliencies: tuple[Saliency, ...] = ("received", "mean")
    saliency: Saliency = "received"

    def __init__(self, model: Any, deepstack: bool = False):
        super().__init__()
        self.model = model
        # A tuple hides modules from nn.Module's registration: they are registered in the model.
        self._mergers = tuple(getattr(model, "deepstack_merger_list", ())) if deepstack else ()
        if deepstack and not self._mergers:
            raise ValueError(
                f"deepstack is asked of a {model.config.model_type} tower that gives its language model features of no "
                "inner block; leave it out"
            )
        self.deepstack = len(self._mergers)
        self.patch_size: int = model.config.patch_size
        self.merge: int = model.config.spatial_merge_size
        self.dim: int = model.config.hidden_size * (1 + self.deepstack)
        self.image_size, self.statistics = IMAGE_SIZE, None

    @property
    @override
    def watched(self) -> nn.Module | None:  # type: ignore[override]
        return self.model.blocks[whole_frame_block(self.model.config)] if self.saliency == "received" else None

    @override
    def forward(self, video: Tensor) -> TeacherFeatures:
        config = self.model.config
        pixels, grid = patchified(video, config)
        if self.watched is None:
            hidden = self.hidden(pixels, grid)
            return TeacherFeatures(raster(hidden, grid, config), None, None)
        with AttentionWatch(self.watched) as watch:
            hidden = self.hidden(pixels, grid)
        logits = raster(watch.received().reshape(-1, 1), grid, config)[..., 0]  # [B,t,h,w]
        return TeacherFeatures(raster(hidden, grid, config), None, logits)

    def hidden(self, pixels: Tensor, grid: Tensor) -> Tensor:
        """What `patchified` gives -> [B*t*h*w,C], in the tower's order; with deepstack (1+n)*C channels."""
        tapped: list[Tensor] = []
        hooks = [merger.register_forward_pre_hook(lambda _, given: tapped.append(given[0])) for merger in self._mergers]
        try:
            last = self.model(pixels, grid_thw=grid).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([last, *tapped], -1) if tapped else last

    @override
    def vit_weights(self) -> VitWeights:
        """As of an image model, which sees each frame twice: the two halves of a patch's kernel are added."""
        config, state = self.model.config, dict(self.model.state_dict())
        name = "patch_embed.proj.weight"
        state[name] = state[name].sum(2)  # [C,3,p,p]
        kept = {
            name.replace("linear_fc", "fc").replace("pos_embed.weight", "pos_embed"): tensor
            for name, tensor in state.items()
            if not name.startswith(OF_THE_LANGUAGE_MODEL)
        }
        side = round(getattr(config, "num_position_embeddings", 0) ** 0.5)
        weights = vit_weights(
            kept,
            heads=config.num_heads,
            cls=False,
            registers=0,
            grid=(side, side),
            rotary=True,
            activation=self.model.blocks[0].mlp.act_fn,
        )
        if not getattr(config, "window_size", None):
            return weights
        windows = f"most of its blocks attend within windows of {config.window_size} pixels, a student's within frames"
        return replace(weights, differences=(*weights.differences, windows))
