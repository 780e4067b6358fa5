"""Launching Triton kernels: block sizes, strided tensors, tuning over a committed set of configurations."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from liteframe_kernels.backend import INTERPRETING
from liteframe_kernels.precision import accumulator

# Contracting a*b+c into one instruction is the default of Triton 3.6 to 3.9 and no longer that of 3.10.
FIXED_OPTIONS = {"enable_fp_fusion": True}


class TunedKernel:
    """A kernel with its configurations, timed once for each value of `key` on a GPU; the choice is kept on disk.

    Only kernels whose results do not depend on the configuration are tuned. One that sums across threads keeps one
    configuration, so that two runs agree to the last bit whatever the tuning found.
    """

    def __init__(self, kernel: Any, configs: Sequence[triton.Config], key: Sequence[str] = ()) -> None:
        self.kernel = kernel
        self.configs = list(configs)
        tuned = len(self.configs) > 1 and not INTERPRETING
        self._tuned = triton.autotune(self.configs, list(key), cache_results=True)(kernel) if tuned else None

    def launch(self, programs: Callable[[dict], int], device: torch.device, **arguments: Any) -> None:
        """Run `programs(meta)` programs on the device of the tensors."""
        guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        with guard:
            if self._tuned is not None:
                self._tuned[lambda meta: (programs(meta),)](**arguments, **FIXED_OPTIONS)
            else:
                config = self.configs[0]
                meta = {**arguments, **config.all_kwargs()}
                self.kernel[(programs(meta),)](**meta, **FIXED_OPTIONS)


def channel_block(channels: int, limit: int = 256) -> int:
    """Width of a block of channels: a power of two, at most `limit`."""
    return min(triton.next_power_of_2(channels), limit)


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, otherwise a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def wide(tensor: Tensor) -> tl.dtype:
    """Triton's name of the dtype sums are kept in."""
    return tl.float64 if accumulator(tensor.dtype) == torch.float64 else tl.float32
