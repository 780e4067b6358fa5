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

# Numbers of frames, tokens, windows and programs: a kernel compiled for one of them serves all, sizes of 1 too.
COUNTS = (
    "T", "N", "TO", "HO", "WO", "rows", "cls_rows", "parts", "n_span", "blocks_per_program", "columns",
)  # fmt: skip
MULTIPROCESSORS = 132  # of an H100 and an H200; an A100 has 108
# Contracting a*b+c into one instruction is the default of Triton 3.6 to 3.9 and no longer that of 3.10.
FIXED_OPTIONS = {"enable_fp_fusion": True}


class TunedKernel:
    """A kernel with its configurations; of several, the one that is fastest at the sizes at hand.

    On a GPU they are timed on the first call of a process for a device, a dtype, the values of `key` and sizes up to
    the same powers of two. Nothing is kept on disk: there a first small call, or another card of one architecture,
    would decide for a training run. Only kernels whose results do not depend on the configuration are tuned. One that
    sums across threads keeps one configuration, so that two runs agree to the last bit whatever the tuning found.
    """

    def __init__(self, kernel: Any, configs: Sequence[triton.Config], key: Sequence[str] = ()) -> None:
        self.kernel = kernel
        self.configs = list(configs)
        self.key = tuple(key)
        self.chosen: dict[tuple, triton.Config] = {}

    def launch(self, programs: Callable[[dict], int], tokens: Tensor, **arguments: Any) -> None:
        """Run `programs(meta)` programs on the device of `tokens`, the tensor that takes the time.

        Raises:
            RuntimeError: a first call, which compiles and times the kernel, within the capture of a CUDA graph.
        """

        def run(config: triton.Config) -> None:
            meta = {**arguments, **config.all_kwargs()}
            self.kernel[(programs(meta),)](**meta, **FIXED_OPTIONS)

        guard = torch.cuda.device(tokens.device) if tokens.is_cuda else contextlib.nullcontext()
        with guard:
            if len(self.configs) == 1 or INTERPRETING:
                config = self.configs[0]
            else:
                sizes = tuple(size.bit_length() for size in tokens.shape)
                case = (tokens.device, tokens.dtype, *sizes, *(arguments[name] for name in self.key))
                if case not in self.chosen:
                    self.chosen[case] = self._fastest(run)
                config = self.chosen[case]
            try:
                run(config)
            except RuntimeError as error:
                if _capturing():
                    raise RuntimeError(self._first_call()) from error
                raise

    def _fastest(self, run: Callable[[triton.Config], None]) -> triton.Config:
        if _capturing():
            raise RuntimeError(self._first_call())
        timed = triton.runtime.driver.active.get_benchmarker()
        times = [timed(lambda c=c: run(c), warmup=5, rep=20, quantiles=(0.5, 0.2, 0.8))[0] for c in self.configs]
        return self.configs[times.index(min(times))]

    def _first_call(self) -> str:
        return (
            f"{self.kernel.__name__}: its first call at these sizes compiles and times it, which cannot be captured in "
            "a CUDA graph; run the model once on the same sizes before the capture"
        )


@triton.jit
def try_kernel(p_flag):
    """One program: a number to memory."""
    tl.store(p_flag, 1.0)


def try_triton() -> None:
    """Compile and run the smallest of kernels on the current GPU; raises what stands against it."""
    flag = torch.zeros(1, device="cuda")
    try_kernel[(1,)](flag)
    if flag.item() != 1:
        raise RuntimeError("a kernel ran and wrote nothing")


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def channel_block(channels: int, limit: int = 256) -> int:
    """Width of a block of channels: a power of two, at most `limit`."""
    return min(triton.next_power_of_2(channels), limit)


def share(pieces: int, *, resident: int, most: int) -> int:
    """How many of so many equal pieces of work a program takes whose sums take a second stage.

    As many as `most`, fewer where the programs would not fill a card: at small stages of a student, 72 programs would
    leave half of an H100 idle. It does not ask which card there is: the order of sums is the same on all.

    Args:
        pieces: of work, over all programs.
        resident: programs that a multiprocessor holds at once.
        most: pieces that a program may take.
    """
    return max(1, min(most, pieces // (MULTIPROCESSORS * resident)))


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where its channels lie side by side, otherwise a contiguous copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def wide(tensor: Tensor) -> tl.dtype:
    """Triton's name of the dtype sums are kept in."""
    return tl.float64 if accumulator(tensor.dtype) == torch.float64 else tl.float32
