"""Surroundings of the kernel checks: Triton's interpreter, fresh memory full of NaN, one tolerance a dtype.

The files here run in a process of their own, which test_triton_interpreter.py starts with TRITON_INTERPRET=1: kernels
decorated for the interpreter cannot be compiled, and the other way round.
"""

from types import SimpleNamespace

import numpy
import pytest
import torch
import triton
import triton.language as tl
from liteframe_kernels import launch
from liteframe_kernels.backend import INTERPRETING
from packaging.version import Version
from triton.runtime import interpreter

# Largest error allowed, as a share of the largest value. The interpreter truncates to bfloat16 instead of rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


def triton_and_numpy_agree():
    """Triton before 3.7 makes Python numbers of arrays of one element, which numpy 2.4 no longer does."""
    return Version(triton.__version__) >= Version("3.7") or Version(numpy.__version__) < Version("2.4")


@pytest.fixture(autouse=True, scope="session")
def prepared_once():
    """The interpreter puts its functions into `tl` for a kernel, and again in each call of one from it: here once."""
    prepare = interpreter._patch_lang

    def if_not_done(function):
        modules = [module for module in function.__globals__.values() if module is tl or module is tl.core]
        originals = [tl.tensor.__add__, *(module.load for module in modules)]
        if any(map(tl.core.is_builtin, originals)):
            return prepare(function)
        return SimpleNamespace(restore=lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", if_not_done)
        yield


@pytest.fixture(autouse=True)
def small_card(monkeypatch):
    """A card that a few programs fill, so that each takes several pieces of a small input."""
    monkeypatch.setattr(launch, "MULTIPROCESSORS", 1)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Whatever a kernel allocates and does not write is NaN."""
    assert INTERPRETING, "run these files through tests/kernels/test_triton_interpreter.py"
    assert triton_and_numpy_agree(), "the interpreter of Triton 3.6 needs an older numpy: pip install 'numpy<2.4'"
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_near():
    """assert_near(got, exact): same shape, no NaN, within the tolerance of got's dtype."""

    def check(got: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        assert got.shape == exact.shape
        if exact.numel():
            error = (got.double() - exact.double()).abs().max() / exact.double().abs().max().clamp_min(1e-3)
            assert error <= TOLERANCE[dtype or got.dtype], f"error {error:.2e}"

    return check


@pytest.fixture
def embedded():
    """embedded(shape, dtype): a view with room around it on every axis but the last, full of NaN where not its own."""

    def build(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> torch.Tensor:
        base = torch.full([size + 2 for size in shape[:-1]] + [shape[-1]], float("nan"), dtype=dtype)
        view = base[tuple(slice(1, size + 1) for size in shape[:-1])]
        view.copy_(torch.randn(shape))
        return view.requires_grad_(grad)

    return build
