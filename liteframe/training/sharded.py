"""`--trainer.strategy fsdp2`: weights, gradients and optimizer state of the trained model divided over all devices.

Checkpoints hold whole tensors in the format of every other run, so a run may go on under another strategy.
"""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from typing_extensions import override

SHARDED = ("fsdp2", "ShardedStrategy")
REPLICATED = ("auto", "ddp", "DDPStrategy", "SingleDeviceStrategy")


def check_strategy(strategy: Any, *, shardable: bool) -> None:
    """Refuse strategies under which the loss, the checkpoints or the saved weights would not be those of one process.

    Args:
        strategy: `trainer.strategy` as configured: a name, or a class path with arguments.
        shardable: whether the run can divide its weights over the devices.

    Raises:
        ValueError: it is another one.
    """
    name = strategy if isinstance(strategy, str) else strategy.class_path.rsplit(".", 1)[-1]
    if name in REPLICATED or (shardable and name in SHARDED):
        return
    if name in SHARDED:
        raise ValueError(f"--trainer.strategy {name} divides a CTD student; LMA trains few weights: use ddp")
    sharded = ", or fsdp2 (weights and optimizer state divided over all devices)" if shardable else ""
    raise ValueError(f"--trainer.strategy {name} is not supported; use ddp (whole weights on each device){sharded}")


def torchrun_devices() -> dict[str, int]:
    """Devices and nodes as torchrun has started them, whatever a configuration says; empty without it."""
    if not TorchElasticEnvironment.detect():
        return {}
    return {"devices": int(os.environ["LOCAL_WORLD_SIZE"]), "num_nodes": int(os.environ["GROUP_WORLD_SIZE"])}


def fewer_devices(trainer: Mapping[str, Any], batch_size: int, micro_batch_size: int | None) -> int | None:
    """Devices to take where more are asked for than there are: the most that divide the batch among them.

    None where all are there, or are processes of the CPU.
    """
    asked = str(trainer.get("devices"))
    if trainer.get("accelerator") not in ("auto", "gpu", "cuda") or not asked.isdecimal():
        return None
    there, nodes = max(1, torch.cuda.device_count()), int(trainer.get("num_nodes") or 1)
    if int(asked) <= there:
        return None
    # As many clips at a time as each would have had with all of them there.
    micro = micro_batch_size or max(1, batch_size // (int(asked) * nodes))
    return next((n for n in range(there, 1, -1) if batch_size % (micro * n * nodes) == 0), 1)


@contextmanager
def common_end(trainer: Trainer) -> Iterator[None]:
    """After an error, ends the processes that this one has started: they may be waiting for it in a collective.

    The other direction is Lightning's: a child that fails ends all. Under torchrun and SLURM it is theirs.
    """
    try:
        yield
    except BaseException as error:
        launcher = getattr(trainer.strategy, "launcher", None)
        if isinstance(error, Exception) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)
        raise


WHOLE = StateDictOptions(full_state_dict=True)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices; the module shards its trained part in `configure_model` with `shard`.

    Unlike Lightning's, it saves one file through the trainer's CheckpointIO and loads it before training is set up, as
    DDP does.

    Args:
        process_group_backend: None takes the device's.
        timeout: of a collective.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Before, as `on_fit_start` must find what the checkpoint brings."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning calls `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """All processes of all nodes share one set of shards."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)  # the whole file, on every rank

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take each rank's shards out of whole tensors."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take each rank's shards of the moments out of whole tensors."""
        assert self.model is not None
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(self.model, optimizer, _renamed(state, dict(enumerate(order))), options=WHOLE)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole tensors by number, as an optimizer's own state dict has them; on the first rank, which saves them."""
        assert self.model is not None
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_optimizer_state_dict(self.model, plain, options=options)
        order = [name for group in state.get("param_groups", []) for name in group["params"]]
        return _renamed(state, {name: number for number, name in enumerate(order)}) if self.is_global_zero else {}


def _renamed(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimizer's state dict with other keys for its parameters."""
    groups = [{**group, "params": [names[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[key]: values for key, values in state["state"].items()}, "param_groups": groups}


StrategyRegistry.register(
    "fsdp2", ShardedStrategy, description="Weights, gradients and optimizer state divided over all devices"
)


def shard(trainer: Trainer, model: nn.Module, blocks: nn.ModuleList) -> None:
    """Divide a model over the devices, one group of weights a block; nothing under another strategy."""
    if not isinstance(trainer.strategy, ShardedStrategy):
        return
    mesh = trainer.strategy.device_mesh["data_parallel"]
    for part in (*blocks, model):
        # Between two calls every weight is in parts, also those outside the blocks.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Whether some weight is in parts; then every rank must take part in whatever runs or reads the model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor with all its shards; every rank must call it where there are any."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(target: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, divided as `target` is, if it is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def copy_into_shards(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, the same on all ranks, into one that may be sharded."""
    target.copy_(sharded_like(target, value))


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """State dict of whole tensors on the CPU, apart from the model's own; every rank must call it where sharded."""
    return {name: full_tensor(tensor).detach().cpu().clone() for name, tensor in model.state_dict().items()}
