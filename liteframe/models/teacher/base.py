"""What every teacher is: a frozen ViT that turns video into patch features and a saliency signal.

Shapes: B videos, T frames, M images, H x W pixels, (h,w) patch grid, C teacher channels.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import override

from liteframe.models.teacher.saliency import AttentionWatch
from liteframe.models.teacher.vit_weights import VitWeights

# What WAP weighs a teacher's patches by: their product with the cls token of their frame, the attention that the probe
# of a pooling head pays to them, the attention that they receive in the last block, nothing, or a tower's own logits.
Saliency: TypeAlias = Literal["cls", "probe", "received", "mean", "own"]

# Mean and std of the channels of normalized frames.
Statistics: TypeAlias = tuple[tuple[float, float, float], tuple[float, float, float]]
HALVES: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TeacherFeatures(NamedTuple):
    """What CTD needs of a clip; at most one of `query` and `logits` is set.

    Attributes:
        patches: [B,T,h,w,C], the last hidden state with its library's own final norm (if it has one), prefixes removed;
            T pairs of frames for a tower that sees pairs.
        query: [B,T,C], the cls token of each frame, or None.
        logits: [B,T,h,w], log of the attention that a patch gets (from a pooling head's probe, or from all tokens of
            its frame), or None.
    """

    patches: Tensor
    query: Tensor | None
    logits: Tensor | None


class Tower(nn.Module, ABC):
    """A library's ViT behind one signature.

    Attributes:
        model: the library's own module.
        saliencies: what it can be asked for, the default first.
        saliency: which of them `forward` gives.
        temporal_patch: frames that one of its features is of; 1 where it sees each frame by itself.
        merge: patches of a side that it keeps together: sides of its grid are multiples of so many.
        deepstack: inner blocks whose features follow those of the last one in the channels of its patches.
        watched: the block whose attention is seen from outside, and which is therefore never compiled; or None.
    """

    model: Any
    saliencies: tuple[Saliency, ...] = ("own",)
    saliency: Saliency = "own"
    watched: nn.Module | None = None
    temporal_patch: int = 1
    merge: int = 1
    deepstack: int = 0

    @abstractmethod
    def forward(self, video: Tensor) -> TeacherFeatures:
        """[B,T,3,H,W] -> patches [B,t,h,w,C], query [B,t,C] or None, logits [B,t,h,w] or None.

        t = ceil(T / temporal_patch).
        """

    @abstractmethod
    def vit_weights(self) -> VitWeights:
        """The ViT's weights under the student's names; ValueError where its blocks cannot be expressed so."""

    def weigh_by(self, saliency: Saliency) -> None:
        """Choose the saliency.

        Raises:
            ValueError: the tower does not have it.
        """
        if saliency not in self.saliencies:
            raise ValueError(f"the teacher has no saliency {saliency!r}; it has {', '.join(self.saliencies)}")
        self.saliency = saliency


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


class VitTower(ImageTower):
    """A ViT whose tokens are a prefix (cls, registers) and then the patches of a frame, row by row.

    Attributes:
        dim: channels C. image_size: pixels per side that the ViT is made for.
        statistics: mean and std of frames that it needs, whatever the checkpoint's files say; or None.

    Args:
        model: the library's own module.
        patch_size: in pixels.
        cls: number of cls tokens; the query is the first.
        prefix: number of tokens before the patches, cls included.
        pool: the pooling head that has a probe, or None.
    """

    dim: int
    image_size: int
    statistics: Statistics | None

    def __init__(self, model: Any, *, patch_size: int, cls: int, prefix: int, pool: nn.Module | None):
        super().__init__()
        self.model, self.patch_size, self.cls, self.prefix = model, patch_size, cls, prefix
        # A tuple hides modules from nn.Module's registration: they are registered in the model.
        self._parts = (pool, transformer_blocks(model)[-1])
        have: dict[Saliency, bool] = {"cls": cls > 0, "probe": pool is not None, "received": True, "mean": True}
        self.saliencies = tuple(name for name, there in have.items() if there)
        self.weigh_by(self.saliencies[0])

    @property
    @override
    def watched(self) -> nn.Module | None:  # type: ignore[override]
        return self._parts[1] if self.saliency == "received" else None

    @override
    def forward_images(self, images: Tensor) -> TeacherFeatures:
        query = logits = None
        if self.saliency == "received":
            with AttentionWatch(self._parts[1]) as watch:
                tokens = self.tokens(images)  # [M,prefix+h*w,C]
            logits = watch.received()  # [M,prefix+h*w]
        else:
            tokens = self.tokens(images)
        if self.saliency == "cls":
            query = tokens[:, 0]
        elif self.saliency == "probe":
            logits = self.probe(self._parts[0], tokens)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        logits = None if logits is None else logits[:, self.prefix :].unflatten(1, grid)  # [M,h,w]
        return TeacherFeatures(tokens[:, self.prefix :].unflatten(1, grid), query, logits)

    @abstractmethod
    def tokens(self, images: Tensor) -> Tensor:
        """[M,3,H,W] -> [M,prefix+h*w,C]."""

    @abstractmethod
    def probe(self, pool: Any, tokens: Tensor) -> Tensor:
        """What the probe of the pooling head attends to: [M,prefix+h*w,C] -> [M,prefix+h*w], see probe_logits."""


def transformer_blocks(model: nn.Module) -> nn.ModuleList | nn.Sequential:
    """The blocks of a ViT, in order: the longest of its lists of modules by parameters."""
    lists = [part for part in model.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    return max(lists, key=lambda blocks: sum(weight.numel() for weight in blocks.parameters()))


class Teacher(nn.Module):
    """A frozen teacher: `teacher(video[B,T,3,H,W]) -> TeacherFeatures`, no gradient, always in eval mode.

    The weights are deliberately not registered as sub-modules: a teacher that is an attribute of a training module
    moves with `.to()` and `.cuda()` like any other, but `state_dict()`, `parameters()`, optimizers, DDP and checkpoints
    do not see it. Reach the weights through `tower` and `projector`.

    Attributes:
        name: what load_teacher was asked for.
        dim: channels C. patch_size, image_size: pixels.
        image_mean, image_std, resize: the checkpoint's own preprocessing (see liteframe/frame_size.py).
        license: as the model's own metadata states it, or None where it states nothing.
        temporal_patch: frames that one of its features is of.
        deepstack: inner blocks whose features are among its channels, see Tower.
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
        self.temporal_patch, self.deepstack = tower.temporal_patch, tower.deepstack
        self.image_mean, self.image_std, self.resize = image_mean, image_std, resize
        # A tuple hides modules from nn.Module's registration.
        self._hidden: tuple[Tower | None, nn.Module | None] = (tower, projector)
        self._saliency = tower.saliency
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
    def saliency(self) -> Saliency:
        """What WAP weighs its patches by."""
        return self._saliency

    def weigh_by(self, saliency: Saliency) -> None:
        """Choose the saliency.

        Raises:
            ValueError: the tower does not have it, or was dropped.
        """
        self.tower.weigh_by(saliency)
        self._saliency = saliency

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
