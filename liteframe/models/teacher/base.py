"""What every teacher is: a frozen ViT that turns video into patch features and a saliency signal.

Shapes: B videos, T frames, M images, H x W pixels, (h,w) patch grid, C teacher channels.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.vit_weights import VitWeights


class TeacherFeatures(NamedTuple):
    """What CTD needs of a clip; at most one of `query` and `logits` is set.

    Attributes:
        patches: [B,T,h,w,C], the last hidden state with its library's own final norm (if it has one), prefixes removed.
        query: [B,T,C], the cls token of each frame, or None.
        logits: [B,T,h,w], saliency from an attention-pooling head, or None.
    """

    patches: Tensor
    query: Tensor | None
    logits: Tensor | None


class Tower(nn.Module, ABC):
    """A library's ViT behind one signature. `model` is the library's own module."""

    model: Any

    @abstractmethod
    def forward(self, video: Tensor) -> TeacherFeatures:
        """[B,T,3,H,W] -> patches [B,T,h,w,C], query [B,T,C] or None, logits [B,T,h,w] or None."""

    @abstractmethod
    def vit_weights(self) -> VitWeights:
        """The ViT's weights under the student's names; ValueError where its blocks cannot be expressed so."""


class ImageTower(Tower):
    """A tower that sees each frame by itself."""

    @override
    def forward(self, video: Tensor) -> TeacherFeatures:
        patches, query, logits = self.forward_images(video.flatten(0, 1))  # [B*T,...]
        clips = video.shape[:2]
        return TeacherFeatures(
            patches.unflatten(0, clips),  # [B,T,h,w,C]
            None if query is None else query.unflatten(0, clips),  # [B,T,C]
            None if logits is None else logits.unflatten(0, clips),  # [B,T,h,w]
        )

    @abstractmethod
    def forward_images(self, images: Tensor) -> TeacherFeatures:
        """[M,3,H,W] -> patches [M,h,w,C], query [M,C] or None, logits [M,h,w] or None."""


class Teacher(nn.Module):
    """A frozen teacher: `teacher(video[B,T,3,H,W]) -> TeacherFeatures`, no gradient, always in eval mode.

    The weights are deliberately not registered as sub-modules: a teacher that is an attribute of a training module
    moves with `.to()` and `.cuda()` like any other, but `state_dict()`, `parameters()`, optimizers, DDP and checkpoints
    do not see it. Reach the weights through `tower` and `projector`.

    Attributes:
        name: what load_teacher was asked for.
        dim: channels C. patch_size, image_size: pixels.
        image_mean, image_std, resize: the checkpoint's own preprocessing ("squash" or "crop").
        license: as the model's own metadata states it, or None where it states nothing.
        tower: the ViT.
        projector: for the vision tower of a VLM, [...,h,w,C] -> [...,h/2,w/2,C_llm] through the VLM's own pixel shuffle
            and MLP; None otherwise.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        name: str,
        dim: int,
        patch_size: int,
        image_size: int,
        image_mean: tuple[float, float, float],
        image_std: tuple[float, float, float],
        resize: str,
        license: str | None = None,
        projector: nn.Module | None = None,
    ):
        super().__init__()
        self.name, self.license = name, license
        self.dim, self.patch_size, self.image_size = dim, patch_size, image_size
        self.image_mean, self.image_std, self.resize = image_mean, image_std, resize
        # A tuple hides modules from nn.Module's registration.
        self._hidden: tuple[Tower | None, nn.Module | None] = (tower, projector)
        for module in self.parts:
            module.requires_grad_(False).eval()
        super().train(False)

    @property
    def tower(self) -> Tower:
        """The library's ViT.

        Raises:
            ValueError: it was dropped.
        """
        if self._hidden[0] is None:
            raise ValueError(f"the ViT of teacher {self.name} was dropped: its targets come from a cache")
        return self._hidden[0]

    @property
    def projector(self) -> nn.Module | None:
        """The VLM's pixel shuffle and MLP, or None."""
        return self._hidden[1]

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """Tower and projector, those that there are."""
        return tuple(module for module in self._hidden if module is not None)

    def drop_tower(self) -> None:
        """Free the memory of the ViT; its identity, the projector and the description stay."""
        self.identity  # noqa: B018 - taken from the weights while they are there, and kept
        self._hidden = (None, self.projector)

    @property
    def device(self) -> torch.device:
        """Device of the tower's weights."""
        return next(self.tower.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights and of the features."""
        return next(self.tower.parameters()).dtype

    @cached_property
    def identity(self) -> str:
        """sha256 over names, types, shapes and bytes of the tower's weights, taken when first asked for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tower.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def forward(self, video: Tensor) -> TeacherFeatures:
        """[B,T,3,H,W] in any floating type; H and W multiples of patch_size.

        Raises:
            ValueError: another rank, unnormalized (integer) frames, or a size that the patch size does not divide.
        """
        p = self.patch_size
        if video.ndim != 5 or video.shape[2] != 3:
            raise ValueError(f"teacher {self.name} takes a video [B,T,3,H,W], got {list(video.shape)}")
        if not video.is_floating_point():
            raise ValueError(
                f"teacher {self.name} takes normalized frames, got {video.dtype}; apply FrameTransform first"
            )
        if video.shape[3] % p or video.shape[4] % p:
            raise ValueError(
                f"frames of {video.shape[3]}x{video.shape[4]} pixels do not fit teacher {self.name}: "
                f"height and width must be multiples of its patch size {p}"
            )
        # Autocast is for float32 weights; around half ones it would only run the norms in float32, between two casts.
        autocast = torch.is_autocast_enabled(video.device.type) and self.dtype == torch.float32
        with torch.no_grad(), torch.autocast(video.device.type, enabled=autocast):
            return self.tower(video.to(self.dtype))

    @override
    def train(self, mode: bool = True) -> "Teacher":
        return self  # a teacher stays in eval mode

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "Teacher":
        for module in self.parts:
            module._apply(fn, recurse)
        return super()._apply(fn, recurse)


def probe_logits(tokens: Tensor, probe: Tensor, to_query: tuple[Tensor, Tensor], to_key: Tensor, heads: int) -> Tensor:
    """Log of the attention that the probe of a pooling head pays to each token, averaged over heads (methods 15).

    The probe goes through the layer of the keys instead of the tokens: q . (W x) = (q W) . x. What a bias of the keys
    adds is the same for all tokens of a head, and no softmax sees it.

    Args:
        tokens: [M,N,C], what the head pools.
        probe: [C].
        to_query: weight [C,C] and bias [C] of the layer that makes its query.
        to_key: weight [C,C] of the layer that makes keys.
        heads: between which the channels of query and keys are divided.

    Returns:
        [M,N], float32 inside autocast too (float64 stays); exp of it sums to one over N.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    weight, bias, keys, probe = (x.to(dtype) for x in (*to_query, to_key, probe))
    with torch.autocast(tokens.device.type, enabled=False):
        query = F.linear(probe, weight, bias).unflatten(0, (heads, -1))  # [heads,C/heads]
        probes = torch.einsum("hd,hdc->hc", query, keys.unflatten(0, query.shape))
        scores = torch.einsum("mnc,hc->mhn", tokens.to(dtype), probes) / math.sqrt(query.shape[1])
    return head_mean_log_attention(scores)


def head_mean_log_attention(scores: Tensor) -> Tensor:
    """Scaled products [M,heads,N] -> log of the mean over heads of their softmax over N, [M,N], float32 inside."""
    logs = F.log_softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return logs.logsumexp(dim=1) - math.log(scores.shape[1])
