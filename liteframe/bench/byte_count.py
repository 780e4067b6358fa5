"""Bytes that a computation moves between memory and chip, counted on fake tensors: no memory, no GPU, true sizes.

Every operation, one of our Triton kernels too, reads its inputs and writes its outputs once; views move nothing.
Attention is torch's flash kernel, which is what runs on a GPU in 16 bits. What a library does inside one call (a copy
to another layout, a second pass) is not seen, and caches are taken not to help.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

# Operations that touch no element, that look at the shape of their input alone, and that read as much as they write.
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense", "is_pinned")
SHAPE_ONLY = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
GATHERS = ("embedding", "index_select", "gather", "index")
OVERWRITES = ("copy_", "fill_", "zero_")

# What the table calls operations.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation", "convolution", "convolution_backward"),
    "attention": ("_scaled_dot_product",),
    "GELU": ("gelu", "gelu_backward"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward"),
    "additions": ("add", "add_", "sub", "addcmul", "addcmul_"),
    "products": ("mul", "mul_", "div", "div_"),
    "copies and casts": ("cat", "copy_", "_to_copy", "clone", "constant_pad_nd", "slice_backward", "select_backward"),
}


class ByteCounter(TorchDispatchMode):
    """Counts what happens within, by name of the operation.

    Attributes:
        by_operation: name, such as "mm" or "temporal_conv" -> bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operation: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return sum(self.by_operation.values())

    def by_kind(self) -> dict[str, int]:
        """Bytes by the names of KINDS, by those of our kernels, and the rest."""
        kinds: Counter[str] = Counter()
        for name, size in self.by_operation.items():
            kinds[kind_of(name)] += size
        return {kind: size for kind, size in kinds.most_common() if size}

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.by_operation[_name(func)] += _moved(func, args, kwargs or {}, result)
        return result


class _FlashAttention(TorchFunctionMode):
    """torch's dispatcher asks the hardware which attention to take; here there is none to ask."""

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k, v = (x.to(torch.bfloat16) if torch.is_autocast_enabled("cuda") else x for x in args[:3])
            if len(args) > 3 or any((kwargs or {}).values()):
                raise ValueError("bytes of attention with a mask, dropout or a scale are not counted")
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return func(*args, **(kwargs or {}))


_MODE = FakeTensorMode(allow_non_fake_inputs=True)  # one: tensors of two do not mix


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Within, tensors made on "cuda" have shapes and no memory, attention is the flash kernel, autocast works."""
    with (
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        _MODE,
        _FlashAttention(),
    ):
        yield


def on_fake_gpu(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Give a model made on "meta" weights without memory on "cuda", floats in `dtype`, in place."""
    for module in model.modules():
        groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for group in groups:
            for name, old in group.items():
                if old is None:
                    continue
                kind = dtype if old.is_floating_point() else old.dtype
                new = torch.empty(old.shape, dtype=kind, device="cuda")
                group[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return model


def count(call: Callable[[], Any]) -> ByteCounter:
    """Bytes that a call moves after a first one, which may prepare something."""
    call()
    with ByteCounter() as counter:
        call()
    return counter


def backward(loss: Tensor) -> None:
    """`loss.backward()` without torch's engine, which wants a real GPU: node by node, sums where paths meet."""
    waits: Counter[Any] = Counter()
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for following, _ in _followers(stack.pop()):
            waits[following] += 1
            if following not in seen:
                seen.add(following)
                stack.append(following)
    received: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    ready: list[Any] = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            for (following, place), grad in _gradients(node, received.pop(node, None)):
                if grad is not None:
                    expected = following._input_metadata
                    slots = received.setdefault(following, [None] * len(expected))
                    grad = grad.sum_to_size(expected[place].shape).to(expected[place].dtype)
                    before = slots[place]
                    slots[place] = grad if before is None else before + grad
                waits[following] -= 1
                if not waits[following]:
                    ready.append(following)


def _gradients(node: Any, given: list[Tensor | None] | None) -> list[tuple[tuple[Any, int], Tensor | None]]:
    """What a node hands to each that follows it."""
    if given is None:
        return [(edge, None) for edge in _followers(node)]
    if callable(node):
        results = node(*given)
        results = results if isinstance(results, tuple) else (results,)
        edges = zip(node.next_functions, results, strict=False)
        return [(edge, grad) for edge, grad in edges if edge[0] is not None]
    # One written in Python, as those of our kernels are: a result for each argument, an edge for tensors alone.
    wanted = [grad for grad, needed in zip(node.apply(*given), node.needs_input_grad, strict=False) if needed]
    return list(zip(_followers(node), wanted, strict=True))


def _followers(node: Any) -> list[tuple[Any, int]]:
    return [(following, place) for following, place in node.next_functions if following is not None]


def _name(func: Any) -> str:
    return str(func.name()).split("::")[-1].split(".")[0]


def kind_of(name: str) -> str:
    """What the table calls an operation."""
    for kind, names in KINDS.items():
        if name in names or (kind == "attention" and name.startswith(names)):
            return kind
    return name


def _moved(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    name = _name(func)
    if name in NOTHING:
        return 0
    given, mutated = _arguments(func, args, kwargs)
    storages = {tensor.untyped_storage()._cdata for tensor in given + mutated}
    made = [t for t in _tensors(result) if t.untyped_storage()._cdata not in storages]
    if not made and not mutated:
        return 0  # a view, or a question about a shape
    written = sum(map(_size, made)) + sum(map(_size, mutated))
    read = 0 if name in SHAPE_ONLY else sum(map(_size, given))
    if name in GATHERS:
        read = min(read, written + sum(_size(t) for t in given if not t.is_floating_point()))
    if name not in OVERWRITES and not _is_out(func):
        read += sum(map(_size, mutated))
    return read + written


def _arguments(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that are only read, and those that are written to, each once."""
    read: dict[int, Tensor] = {}
    written: dict[int, Tensor] = {}
    for number, argument in enumerate(func._schema.arguments):
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        group = written if argument.alias_info is not None and argument.alias_info.is_write else read
        group.update((id(tensor), tensor) for tensor in _tensors(value))
    return [tensor for key, tensor in read.items() if key not in written], list(written.values())


def _is_out(func: Any) -> bool:
    return any(argument.is_out for argument in func._schema.arguments)


def _tensors(value: Any) -> Iterable[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of its elements; one that is repeated by a stride of zero counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1
    for size, stride in sizes:
        elements *= size if stride or not size else 1
    return elements * tensor.element_size()
