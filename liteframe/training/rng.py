"""States of the random number generators of every rank, as tensors that a checkpoint can hold."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """This process's generators: torch on the CPU and on `device`, NumPy, Python. Inverse: `set_rng_state`."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    _, words, python_gauss = random.getstate()
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        **states,
        "numpy": torch.tensor([*numpy["state"]["key"].tolist(), numpy["state"]["pos"], numpy["has_gauss"]]),
        "python": torch.tensor(words),
        # NaN where no second normal number is kept.
        "gauss": torch.tensor(
            [numpy["gauss"], float("nan") if python_gauss is None else python_gauss], dtype=torch.float64
        ),
    }


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put this process's generators into a state that `rng_state` has returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    *keys, position, has_gauss = state["numpy"].tolist()
    gauss, python_gauss = state["gauss"].tolist()
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    random.setstate((3, tuple(state["python"].tolist()), None if python_gauss != python_gauss else python_gauss))


def gather_rng_states(trainer: Trainer) -> list[dict[str, Any]]:
    """The states of all ranks, in order; every rank must call this."""
    state = rng_state(trainer.strategy.root_device)
    if trainer.world_size == 1:
        return [state]
    device = trainer.strategy.root_device
    gathered = {name: trainer.strategy.all_gather(tensor.to(device)).cpu() for name, tensor in state.items()}
    return [{name: tensors[rank].clone() for name, tensors in gathered.items()} for rank in range(trainer.world_size)]
