"""Bytes of a compiled model by Inductor's own accounting, without a GPU.

torch.compile lowers a model of fake CUDA tensors and decides what it fuses, as on a GPU; no code is generated. What
lowering asks of the card is answered with an H100's properties. Each kernel counts what Inductor says that it reads and
writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from liteframe_kernels import force_backend
from torch import Tensor, nn

from liteframe.bench.byte_count import fake_gpu, kind_of

H100: dict[str, Any] = {
    "name": "NVIDIA H100", "major": 9, "minor": 0, "multi_processor_count": 132, "warp_size": 32,
    "max_threads_per_multi_processor": 2048, "regs_per_multiprocessor": 65536, "total_memory": 80 << 30,
}  # fmt: skip


def compiled_kinds(model: nn.Module, video: Callable[[], Tensor], backend: str | None = None) -> dict[str, int]:
    """Bytes of a compiled forward pass without gradients, by kind; what Inductor has fused is "fused kernels".

    Args:
        model: on a fake GPU.
        video: makes its input there.
        backend: of our kernels, see `force_backend`; with "reference", Inductor fuses what they would do.
    """
    kinds: Counter[str] = Counter()

    def lower(graph_module: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Any:
        kinds.update(_lowered(graph_module, inputs))
        return graph_module.forward

    def counted(graph_module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph_module, inputs, inner_compile=lower)

    torch.compiler.reset()
    with _as_on_an_h100(), fake_gpu(), torch.no_grad(), force_backend(backend):
        torch.compile(model, backend=counted, dynamic=False, fullgraph=True)(video())
    torch.compiler.reset()
    return dict(kinds.most_common())


def _lowered(graph_module: torch.fx.GraphModule, inputs: list[Tensor]) -> Counter[str]:
    from torch._inductor.debug import DebugContext
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    mode = torch._guards.detect_fake_mode(inputs)
    assert mode is not None
    graph = GraphLowering(graph_module, shape_env=mode.shape_env, is_inference=True)
    kinds: Counter[str] = Counter()
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        graph.run(*inputs)
        graph._update_scheduler()
        for node in graph.scheduler.nodes:
            extern = getattr(node.node, "op_overload", None) or getattr(node.node, "python_kernel_name", None)
            name = str(extern).removeprefix("extern_kernels.").removeprefix("aten.").split("::")[-1].split(".")
            kind = (
                "fused kernels" if extern is None else kind_of(name[0] if name[0] != "liteframe_kernels" else name[1])
            )
            kinds[kind] += node.get_read_write_buffers_sizes()
    return kinds


@contextmanager
def _as_on_an_h100() -> Iterator[None]:
    import torch._inductor.scheduler
    from torch._inductor.runtime.hints import DeviceProperties

    kept = ("major", "multi_processor_count", "warp_size", "max_threads_per_multi_processor", "regs_per_multiprocessor")
    properties = DeviceProperties(type="cuda", index=0, cc=90, **{name: H100[name] for name in kept})
    answers = (
        (torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(**H100)),
        (torch._inductor.scheduler, "has_triton", lambda: True),
        (DeviceProperties, "create", lambda *_: properties),
    )
    with ExitStack() as stack:
        for owner, name, answer in answers:
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield
