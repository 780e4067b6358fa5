"""What makes a step faster without changing what it computes: a bfloat16 teacher, compiled blocks, whole batches."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from liteframe.models.teacher.base import Teacher, transformer_blocks


def prepare_teacher(teacher: Teacher, device: torch.device, precision: str) -> None:
    """Give a frozen teacher bfloat16 weights where the run computes in bfloat16 on a GPU; elsewhere it stays as it is.

    Autocast would read float32 weights and round them again in every call, and keep the residual stream in float32.
    Pooling, statistics and loss take the features in float32 either way. The identity stays that of the weights loaded.

    Args:
        teacher: as load_teacher returns it.
        device: where it will run.
        precision: the trainer's, e.g. "bf16-mixed".
    """
    if device.type == "cuda" and precision == "bf16-mixed" and teacher.dtype == torch.float32:
        teacher.identity  # noqa: B018 - taken from the bytes of the checkpoint, and kept
        teacher.tower.to(torch.bfloat16)


def compile_blocks(model: nn.Module, backend: str = "inductor", sizes: int = 1) -> None:
    """Compile the transformer blocks of a ViT in place, on first use; names of weights do not change.

    Blocks of one shape share one compiled graph, which takes less time than compiling the whole model.

    Args:
        model: a student or a teacher's tower, whose watched block stays as it is.
        backend: of torch.compile.
        sizes: of frames that will come, each of which has a graph of its own.
    """
    blocks, watched = list(transformer_blocks(model)), getattr(model, "watched", None)
    # Beyond the limit, blocks would run eagerly without a word. Strides may give each block a shape of its own, and a
    # shape has a graph for steps, one for validation and one under inference mode.
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 3 * len(blocks) * sizes)
    for block in blocks:
        if block is not watched:
            block.compile(dynamic=False, backend=backend)


def whole_batches(clips: int, micro_batch_size: int) -> AbstractContextManager[object]:
    """Context in which compiled blocks run: a batch that lacks clips runs eagerly, not after compiling for its size."""
    return nullcontext() if clips == micro_batch_size else torch.compiler.set_stance("eager_on_recompile")
