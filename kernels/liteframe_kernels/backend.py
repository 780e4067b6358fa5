"""Which implementation runs: the Triton kernels or the PyTorch reference."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

try:
    import triton
except ImportError:  # macOS and CPU-only installations: the reference serves every tensor
    triton = None

BACKENDS = (None, "triton", "reference")
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
F = TypeVar("F", bound=Callable)

CUDA_BACKEND = "reference" if triton is None else "triton"
INTERPRETING = triton is not None and bool(triton.knobs.runtime.interpret)
_forced: str | None = None
logging.getLogger(__name__).info("CUDA tensors take the %s backend, others the reference", CUDA_BACKEND)


@contextlib.contextmanager
def force_backend(backend: str | None) -> Iterator[None]:
    """Within the block, calls that name no backend take this one: a model with its kernels on or off.

    Not for threads that run models side by side: the choice is one for the process.
    """
    global _forced
    if backend not in BACKENDS:
        raise ValueError(f"force_backend: backend is {backend!r}; use None, 'triton' or 'reference'")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def use_triton(function: str, x: torch.Tensor, backend: str | None) -> bool:
    """Whether this call runs the Triton kernels.

    Raises:
        ValueError: unknown backend, or Triton was asked for where it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{function}: backend is {backend!r}; use None, 'triton' or 'reference'")
    backend = backend or _forced
    if backend is None:
        return x.is_cuda and CUDA_BACKEND == "triton" and (_untried(x) or _triton_runs())
    if backend == "reference":
        return False
    if triton is None:
        raise ValueError(f"{function}: backend='triton', but triton is not installed; use backend='reference'")
    if not x.is_cuda and not INTERPRETING:
        raise ValueError(
            f"{function}: backend='triton' takes CUDA tensors, got one on {x.device}; use backend='reference', "
            "or set TRITON_INTERPRET=1 before Python starts to run the kernels in Triton's interpreter"
        )
    return True


def _untried(x: torch.Tensor) -> bool:
    """Whether nothing can be tried now: code is being traced or captured, or the tensor has no memory."""
    return torch.compiler.is_compiling() or type(x) is not torch.Tensor or torch.cuda.is_current_stream_capturing()


@functools.cache
def _triton_runs() -> bool:
    """Whether Triton compiles and launches here; it needs a C compiler, which not every machine with a GPU has."""
    from liteframe_kernels.launch import try_triton

    try:
        try_triton()
    except Exception as error:  # whatever it is, the reference computes the same
        logging.getLogger(__name__).warning(
            "Triton cannot run kernels here (%s: %s): the PyTorch reference takes their place, which is slower",
            type(error).__name__, error,
        )  # fmt: skip
        return False
    return True


def backend_report() -> dict[str, str]:
    """What runs the kernels on this machine, for people: versions, the reason for the choice, the default a device."""
    if triton is None:
        reason = "triton is not installed: every tensor takes the PyTorch reference"
    elif not torch.cuda.is_available():
        reason = "no CUDA device: every tensor takes the PyTorch reference"
    else:
        cards = sorted({torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())})
        reason = f"CUDA tensors take the Triton kernels ({', '.join(cards)}), others the reference"
    if INTERPRETING:
        reason += "; TRITON_INTERPRET=1: backend='triton' runs in the interpreter"
    return {
        "triton": "not installed" if triton is None else triton.__version__,
        "cuda": CUDA_BACKEND,
        "other devices": "reference",
        "reason": reason if _forced is None else f"{reason}; forced: {_forced}",
    }


def with_reference(reference: Callable) -> Callable[[F], F]:
    """Decorator that hangs the PyTorch reference beside a public function, as `function.reference`."""

    def attach(function: F) -> F:
        function.reference = reference  # type: ignore[attr-defined]
        return function

    return attach


def check_floating(function: str, **tensors: torch.Tensor | None) -> None:
    """Raise ValueError for a tensor whose dtype the kernels do not take."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
            raise ValueError(
                f"{function}: {name} is {tensor.dtype}; bfloat16, float16, float32 and float64 are supported, "
                f"so convert it first, for example {name}.float()"
            )


def check_shape(function: str, name: str, tensor: torch.Tensor | None, expected: tuple[int, ...]) -> None:
    """Raise ValueError for a given tensor that has not the expected shape."""
    if tensor is not None and tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")
