"""Where a program on the host waits for a device, or would if there were one: found on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

# What Python asks a tensor for, and what makes a device's tensor of the host's numbers.
OF_TENSORS = (
    "item", "tolist", "numpy", "cpu", "cuda", "nonzero", "new_tensor", "is_nonzero", "equal", "masked_select",
    "__bool__", "__float__", "__int__", "__index__", "__contains__", "__array__", "__repr__", "__format__",
)  # fmt: skip
OF_TORCH = ("nonzero", "equal", "is_nonzero", "masked_select", "unique", "argwhere")
ASKED = {f"torch.Tensor.{name}" for name in OF_TENSORS} | {f"torch.{name}" for name in OF_TORCH}
MADE = frozenset(("torch.tensor", "torch.as_tensor"))
# The same one level below, where compiled code and backward passes are seen too.
BELOW = frozenset(
    ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim", "argwhere")
)


class _Asked(TorchFunctionMode):
    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        made = name in MADE and kwargs.get("device") is not None and not isinstance(args[0], Tensor)
        if name in ASKED or made:
            self.found.append(name)
        return func(*args, **kwargs)


class _Below(TorchDispatchMode):
    def __init__(self, found: list[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        counted = name == "repeat_interleave" and "output_size" not in (kwargs or {})
        if name in BELOW or by_mask or counted:
            self.found.append(f"aten.{name}")
        return func(*args, **(kwargs or {}))


def watched(function: Callable[..., Any], found: list[str]) -> Callable[..., Any]:
    """`function`, that notes in `found` whatever in it would wait for a device."""

    def watching(*args: Any, **kwargs: Any) -> Any:
        with _Asked(found), _Below(found):
            return function(*args, **kwargs)

    return watching


def watch(monkeypatch: Any, owner: type, name: str, found: list[str]) -> None:
    """Have a method of a Lightning module or data module watched from the second step on."""
    original = getattr(owner, name)

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.global_step == 0:  # what is kept from then on is made in the first step
            return original(self, *args, **kwargs)
        return watched(original, found)(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, step)
