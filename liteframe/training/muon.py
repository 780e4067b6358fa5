"""Muon for the hidden matrices of a model and AdamW for the rest, as one optimizer.

Muon (K. Jordan, https://kellerjordan.github.io/posts/muon/) moves a matrix not along its momentum but along the nearest
matrix whose singular values are all 1, which five Newton-Schulz steps come close to. Scaled by
0.2 sqrt(max(rows, columns)) it is about as long as AdamW's step (arXiv 2502.16982), so that weight decay has one
meaning for both. torch.optim.Muon computes the same; this one also

- takes a weight apart that is several matrices on top of each other, as q, k and v of a layer are;
- orthogonalizes all matrices of a shape at once, on a CPU in float32, where bfloat16 is slower: a quarter of the time;
- gathers a matrix that FSDP2 has divided, since the nearest orthogonal matrix is not made of those of its parts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from liteframe.training.sharded import full_tensor, sharded_like

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """[n,rows,columns] -> those of the nearest orthogonal matrices, roughly: singular values between 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT.contiguous() if tall else x


class Muon(Optimizer):
    """Muon for the groups that say so, AdamW for the others.

    Args:
        groups: parameter groups with `lr` and `weight_decay`. A group with `pieces`, a number, is Muon's: its
            parameters are matrices, each made of so many of the same height on top of each other.
        betas: moment decay rates of AdamW.
        momentum: of Muon, with Nesterov's look ahead.

    Raises:
        ValueError: Muon is to train what is no matrix, or does not divide into its pieces.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], momentum: float = 0.95):
        groups = list(groups)
        for group in (group for group in groups if "pieces" in group):
            group["momentum"] = momentum
            for parameter in group["params"]:
                if parameter.ndim != 2 or parameter.shape[0] % group["pieces"]:
                    raise ValueError(f"Muon cannot train a {list(parameter.shape)} of {group['pieces']} matrices")
        others = [group for group in groups if "pieces" not in group]
        self.adamw = AdamW(others, betas=betas) if others else None
        super().__init__([*(group for group in groups if "pieces" in group), *others], {})
        self._share()

    def _share(self) -> None:
        """Both work on the groups and the state of this one, which schedules and checkpoints see."""
        if self.adamw is not None:
            self.adamw.param_groups = [group for group in self.param_groups if "pieces" not in group]
            self.adamw.state = self.state

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a loaded state is a new object
        self._share()

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """A step of each; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.adamw is not None:
            self.adamw.step()
        for group in self.param_groups:
            if "pieces" in group:
                self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        alike = defaultdict[torch.Size, list[Tensor]](list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for (rows, columns), parameters in alike.items():
            directions = torch.stack([self._direction(parameter, group["momentum"]) for parameter in parameters])
            matrices = directions.view(-1, rows // group["pieces"], columns)
            rate = group["lr"] * 0.2 * math.sqrt(max(matrices.shape[1:]))
            for parameter, step in zip(parameters, orthogonalize(matrices).view_as(directions), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(sharded_like(parameter, step), alpha=-rate)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """Where the momentum leads, whole, in the precision of the orthogonalization."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        precision = torch.bfloat16 if gradient.is_cuda else torch.float32
        return full_tensor(gradient.lerp(average, momentum).to(precision))
