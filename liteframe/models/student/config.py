"""Shape and preprocessing of a LiteFrame encoder, checked where it is made. Travels inside exported models."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from liteframe.frame_size import RESIZE_MODES
from liteframe.models.student.mixers import MIXERS
from liteframe.models.student.strides import Stride, checked_downsample, checked_modes, is_count, largest, window_of

MODEL_TYPE = "liteframe_vision"


@dataclass
class LiteFrameConfig:
    """Shape of a LiteFrame encoder and the preprocessing it was trained with.

    Attributes:
        downsample: {block: (t,h,w)}: after that many blocks (counted from 1), a strided conv with this stride.
        modes: {name: downsample} of an elastic encoder, whose compression is chosen when it encodes; `downsample` is
            one of them, and meant where none is named. Empty: it has one compression.
        teacher_dim: channels of the output, those of the teacher's patch features.
        deepstack: inner blocks of the teacher's tower whose features follow those of its last block in the output's
            channels, as many channels each; 0 for none.
        clip_frames: frames encoded together; longer videos are encoded clip after clip.
        layer_scale_init: LayerScale of a student that starts without a teacher.
        image_mean, image_std: statistics of RGB in [0,1] that the teacher's preprocessing subtracts and divides by.
        resize: how frames reach their size: "squash" (image_size both ways, whatever the aspect ratio), "crop" (short
            side, centre crop) or "aspect" (in their own aspect ratio, image_size squared pixels at most).
        merge_size: tokens down and across that a VLM's projector merges into one; sizes are made for it where resize is
            "aspect".

    Raises:
        ValueError: a field is out of range or contradicts another; the message names it.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int | None = None  # None: 4 * dim
    patch_size: int = 14
    image_size: int = 448
    teacher_dim: int = 1024
    downsample: dict[int, Stride] = field(default_factory=lambda: {4: (2, 2, 2), 8: (2, 1, 1)})
    temporal_kernel: int = 3
    temporal_mixer: str = "conv"
    clip_frames: int = 16
    layer_scale_init: float = 0.1
    layer_norm_eps: float = 1e-6
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize: str = "squash"
    merge_size: int = 1
    modes: dict[str, dict[int, Stride]] = field(default_factory=dict)
    deepstack: int = 0

    def __post_init__(self) -> None:
        """Normalize containers (JSON turns int keys and tuples into strings and lists) and check every field."""
        if self.mlp_dim is None:
            self.mlp_dim = 4 * self.dim
        for name in (
            "dim", "depth", "heads", "mlp_dim", "patch_size", "image_size", "teacher_dim", "clip_frames", "merge_size",
            "temporal_kernel",
        ):  # fmt: skip
            if not is_count(value := getattr(self, name)):
                raise ValueError(f"LiteFrameConfig: {name} must be an integer >= 1, got {value!r}")
        if self.temporal_kernel % 2 == 0:
            raise ValueError(f"LiteFrameConfig: temporal_kernel must be odd, got {self.temporal_kernel}")
        if self.dim % self.heads:
            raise ValueError(f"LiteFrameConfig: heads={self.heads} does not divide dim={self.dim}")
        if self.temporal_mixer not in MIXERS:
            raise ValueError(
                f"LiteFrameConfig: temporal_mixer={self.temporal_mixer!r} is unknown; choose one of {', '.join(MIXERS)}"
            )
        if self.temporal_kernel != 3 and not MIXERS[self.temporal_mixer].has_kernel:
            raise ValueError(
                f"LiteFrameConfig: temporal_kernel={self.temporal_kernel} has no effect with "
                f"temporal_mixer={self.temporal_mixer!r}; leave it out"
            )
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"LiteFrameConfig: resize is {self.resize!r}; choose one of {', '.join(RESIZE_MODES)}")
        if self.merge_size != 1 and self.resize != "aspect":
            raise ValueError(
                f"LiteFrameConfig: merge_size={self.merge_size} does nothing where resize is {self.resize!r}; leave it "
                "out or set resize to 'aspect'"
            )
        if self.deepstack != 0 and (not is_count(self.deepstack) or self.teacher_dim % (1 + self.deepstack)):
            raise ValueError(
                f"LiteFrameConfig: deepstack={self.deepstack!r} must be a number of blocks whose features, with those "
                f"of the last one, divide teacher_dim={self.teacher_dim}"
            )
        self._check_floats()
        try:
            self.downsample = checked_downsample("downsample", self.downsample, self.depth)
            self.modes = checked_modes(self.modes, self.downsample, self.depth)
        except ValueError as error:
            raise ValueError(f"LiteFrameConfig: {error}") from error
        for name, window in (self.windows or {"": self.compression}).items():
            self._check_window(window, f" of mode {name!r}" if name else "")
        if any(self.image_size % step for step in self.pixel_multiple):
            raise ValueError(
                f"LiteFrameConfig: image_size={self.image_size} is not a multiple of patch_size * stride * merge_size "
                f"= {self.pixel_multiple} (down, across), which a projector that merges {self.merge_size}x"
                f"{self.merge_size} tokens needs"
            )

    @property
    def hidden(self) -> int:
        """Channels inside the MLP."""
        return self.mlp_dim or 4 * self.dim

    def _check_floats(self) -> None:
        for name in ("layer_scale_init", "layer_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"LiteFrameConfig: {name} must be a positive number, got {value!r}")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if (
                not isinstance(value, list | tuple)
                or len(value) != 3
                or not all(isinstance(v, int | float) and math.isfinite(v) for v in value)
            ):
                raise ValueError(f"LiteFrameConfig: {name} must be three numbers, got {value!r}")
            setattr(self, name, tuple(float(v) for v in value))
        if min(self.image_std) <= 0:
            raise ValueError(f"LiteFrameConfig: image_std must be positive, got {self.image_std}")

    def _check_window(self, window: Stride, of: str) -> None:
        t, h, w = window
        for name, stride in (("height", h), ("width", w)):
            if self.image_size % (self.patch_size * stride):
                raise ValueError(
                    f"LiteFrameConfig: image_size={self.image_size} is not a multiple of patch_size * {name} "
                    f"stride{of} = {self.patch_size} * {stride} = {self.patch_size * stride}"
                )
        if self.clip_frames % t:
            raise ValueError(
                f"LiteFrameConfig: clip_frames={self.clip_frames} is not a multiple of the temporal stride {t}{of}"
            )

    @property
    def windows(self) -> dict[str, Stride]:
        """(t,h,w) of each mode, from the finest to the coarsest; empty where there is one compression only."""
        return {name: window_of(downsample) for name, downsample in self.modes.items()}

    @property
    def default_mode(self) -> str:
        """The mode that `downsample` is; raises ValueError where there are none."""
        return next(name for name, downsample in self._some_modes().items() if downsample == self.downsample)

    @property
    def kernels(self) -> dict[int, Stride]:
        """{block: (t,h,w)} of the kernels that the strided convs hold: the largest strides of all modes."""
        return largest(self.modes.values()) if self.modes else self.downsample

    def of_mode(self, mode: str) -> "LiteFrameConfig":
        """The config of the ordinary student that computes what an elastic one does in a mode.

        Raises:
            ValueError: there is no such mode.
        """
        modes = self._some_modes()
        if mode not in modes:
            raise ValueError(f"mode {mode!r} is unknown: this encoder has {', '.join(modes)}")
        return replace(self, downsample=modes[mode], modes={})

    def _some_modes(self) -> dict[str, dict[int, Stride]]:
        if not self.modes:
            raise ValueError(
                f"this encoder has one compression, {self.compression}, and no modes: leave the mode out, or make an "
                "elastic encoder of it (liteframe upgrade)"
            )
        return self.modes

    @property
    def compression(self) -> Stride:
        """(t,h,w): input frames, patch rows and patch columns per output token; also WAP's window."""
        return window_of(self.downsample)

    @property
    def multiple(self) -> Stride:
        """(t,h,w): frames, patch rows and columns that divide into whole tokens in each mode."""
        t, h, w = (math.lcm(*sides) for sides in zip(*(self.windows or {"": self.compression}).values(), strict=True))
        return t, h, w

    @property
    def pixel_multiple(self) -> tuple[int, int]:
        """(down, across): what the sides of frames in their own aspect ratio are multiples of."""
        _, h, w = self.multiple
        return self.patch_size * h * self.merge_size, self.patch_size * w * self.merge_size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with `model_type`."""
        values = asdict(self)
        values["downsample"] = {str(block): list(stride) for block, stride in self.downsample.items()}
        values["modes"] = {
            name: {str(block): list(stride) for block, stride in downsample.items()}
            for name, downsample in self.modes.items()
        }
        values["image_mean"], values["image_std"] = list(self.image_mean), list(self.image_std)
        return {"model_type": MODEL_TYPE, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LiteFrameConfig":
        """Inverse of to_dict. Unknown fields and a foreign model_type raise ValueError."""
        values = dict(values)
        model_type = values.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ValueError(f"model_type is {model_type!r}, not {MODEL_TYPE!r}: this is not a LiteFrame encoder")
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"LiteFrameConfig has no field named {', '.join(unknown)}")
        return cls(**values)
