"""weighted_average_pool against its reference, eager and compiled."""

import math
from collections.abc import Callable, Iterator

import torch
from liteframe_kernels.weighted_average_pool.op import weighted_average_pool
from torch import Tensor

from liteframe.bench.comparison import Comparison

KERNEL = (4, 2, 2)


def comparisons(
    device: torch.device, dtype: torch.dtype, *, frames: int, side: int, channels: int, compiled: bool
) -> Iterator[Comparison]:
    """Pooling of a teacher's tokens `[1,frames,1+side*side,channels]`, weighted by their cls token."""
    shape = (1, frames, 1 + side * side, channels)

    def inputs() -> list[Tensor]:
        return [torch.randn(shape, device=device, dtype=dtype).requires_grad_()]

    def pool(backend: str) -> Callable:
        def call(tokens: Tensor) -> Tensor:
            patches = tokens[:, :, 1:].unflatten(2, (side, side))
            return weighted_average_pool(patches, query=tokens[:, :, 0], kernel=KERNEL, backend=backend)

        return call

    calls = {"triton": pool("triton"), "reference, eager": pool("reference")}
    if compiled:
        calls["reference, torch.compile"] = torch.compile(pool("reference"), dynamic=False)
    elements = math.prod(shape)
    yield Comparison(
        "weighted_average_pool",
        "cls query",
        shape,
        inputs,
        pool("reference"),
        calls,
        tensor_bytes=elements * dtype.itemsize,
        floor={"forward": 1 + 1 / 16, "backward": 2 + 1 / 16},
        flops={"forward": 4 * elements, "backward": 8 * elements},
    )
