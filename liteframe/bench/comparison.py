"""One operation, several implementations: are they right, and then how fast, forward and backward."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from liteframe_kernels.backend import triton
from torch import Tensor

from liteframe.bench.timing import Contender, as_milliseconds, rotation, time_side_by_side

# Largest error of an implementation, root mean square relative to float64: the rounding of inputs and outputs.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
# The same of a network against float32. On a CPU, the student's features lie within 1e-6 (float32) and 7e-3 (bfloat16)
# of it, and the worst of its gradients within 1e-6 and, under autocast, 1e-2.
NETWORK_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
NO_GPU = "not measured on a GPU"


@dataclass(frozen=True)
class Comparison:
    """An operation at one size.

    Attributes:
        kernel: the public function.
        label: which use of it.
        shape: of the large tensor.
        inputs: makes one set of inputs; those that require gradients get them timed.
        exact: the operation in float64, on inputs converted to it.
        implementations: what to compare, by name; "triton" is ours.
        tensor_bytes: size of one pass over the large tensor.
        floor: passes that any implementation needs, {"forward": ..., "backward": ...}; only these are measured.
        flops: operations of each direction.
    """

    kernel: str
    label: str
    shape: tuple[int, ...]
    inputs: Callable[[], list[Tensor]]
    exact: Callable[..., Tensor | tuple[Tensor, ...]]
    implementations: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]]
    tensor_bytes: int
    floor: dict[str, float]
    flops: dict[str, int]


def relative_error(got: Tensor, true: Tensor) -> float:
    """Root mean square of the difference, as a part of that of the true values, in float64 on the true one's device."""
    true = true.double()
    return float((got.to(true.device).double() - true).norm() / true.norm().clamp_min(1e-30))


def verdict(error: float, tolerance: float) -> dict[str, Any]:
    """Status and error of something that has been compared; NaN is wrong."""
    return {"status": "ok" if error <= tolerance else "wrong", "error": error}


def failure(error: Exception) -> dict[str, Any]:
    """Status of something that could not be run."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return {"status": f"failed: {said[0][:200]}"}


def check(comparison: Comparison, device: torch.device, only: str) -> list[dict[str, Any]]:
    """Rows of a record for one implementation: right or not, forward and backward, not timed."""
    inputs = comparison.inputs()
    truth, call = _truth(comparison, inputs), comparison.implementations[only]
    return [
        {**_described(comparison, only, direction, inputs), **_checked(only, call, inputs, truth, direction, device)}
        for direction in comparison.floor
    ]


def compare(
    comparison: Comparison, device: torch.device, *, copy_bytes_per_s: float, warmup: int, runs: int
) -> list[dict[str, Any]]:
    """Rows of a record: a row for each implementation and direction, right and timed or with the reason why not."""
    torch.compiler.reset()  # else the limit of recompilations makes later comparisons run eager
    sets = [comparison.inputs() for _ in range(rotation(comparison.tensor_bytes, device))]
    truth = _truth(comparison, sets[0])
    rows = {
        (name, direction): {
            **_described(comparison, name, direction, sets[0]),
            **_checked(name, call, sets[0], truth, direction, device),
        }
        for direction in comparison.floor
        for name, call in comparison.implementations.items()
    }
    for direction in comparison.floor:
        right = {
            name: _contender(comparison.implementations[name], sets, direction)
            for name in comparison.implementations
            if rows[name, direction]["status"] == "ok"
        }
        for name, timing in time_side_by_side(right, device, warmup=warmup, runs=runs).items():
            seconds = timing.median_ms / 1000
            moved = comparison.floor[direction] * comparison.tensor_bytes
            rows[name, direction] |= {
                **as_milliseconds(timing),
                "gb_per_s": moved / seconds / 1e9,
                "copy_share": moved / seconds / copy_bytes_per_s,
                "passes": seconds * copy_bytes_per_s / comparison.tensor_bytes,
                "intensity": comparison.flops[direction] / moved,
                "flop_per_s": comparison.flops[direction] / seconds,
            }
    return list(rows.values())


def _described(comparison: Comparison, name: str, direction: str, inputs: list[Tensor]) -> dict[str, Any]:
    return {
        "kernel": comparison.kernel,
        "label": comparison.label,
        "direction": direction,
        "implementation": name,
        "shape": list(comparison.shape),
        "dtype": str(inputs[0].dtype).removeprefix("torch."),
        "floor_passes": comparison.floor[direction],
    }


def _outputs(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _gradients_like(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Incoming gradients that are the same for every implementation."""
    generator = torch.Generator(outputs[0].device).manual_seed(0)
    return [torch.randn(y.shape, generator=generator, device=y.device, dtype=torch.float32) for y in outputs]


def _run(call: Callable, inputs: list[Tensor], direction: str) -> tuple[Tensor, ...]:
    outputs = _outputs(call(*inputs))
    if direction == "forward":
        return tuple(y.detach() for y in outputs)
    wanted = [x for x in inputs if x.requires_grad]
    grads = [g.to(y.dtype) for g, y in zip(_gradients_like(outputs), outputs, strict=True)]
    return torch.autograd.grad(outputs, wanted, grads)


def _truth(comparison: Comparison, inputs: list[Tensor]) -> dict[str, tuple[Tensor, ...]]:
    wide = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    return {direction: _run(comparison.exact, wide, direction) for direction in comparison.floor}


def _checked(
    name: str,
    call: Callable,
    inputs: list[Tensor],
    truth: dict[str, tuple[Tensor, ...]],
    direction: str,
    device: torch.device,
) -> dict[str, Any]:
    """Status and error of one implementation."""
    if name == "triton" and device.type != "cuda":
        return {"status": NO_GPU}
    if name == "triton" and triton is None:
        return {"status": "triton is not installed"}
    try:
        results = _run(call, inputs, direction)
    except RuntimeError as error:  # a missing cuDNN engine, a compiler that is not there, memory
        return failure(error)
    errors = [relative_error(got, true) for got, true in zip(results, truth[direction], strict=True)]
    worst = math.nan if any(map(math.isnan, errors)) else max(errors)
    return verdict(worst, TOLERANCE[inputs[0].dtype])


def _contender(call: Callable, sets: list[list[Tensor]], direction: str) -> Contender:
    if direction == "forward":

        def forward(inputs: list[Tensor]) -> None:
            with torch.no_grad():
                call(*inputs)

        return Contender(lambda run: sets[run % len(sets)], forward)

    def prepare(run: int) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        inputs = sets[run % len(sets)]
        outputs = _outputs(call(*inputs))
        return outputs, [x for x in inputs if x.requires_grad], [torch.ones_like(y) for y in outputs]

    return Contender(prepare, lambda prepared: torch.autograd.grad(*prepared))
