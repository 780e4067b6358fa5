"""Does a stopped step again from its dump: losses, gradient norms, and where the first non-finite value appears."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn

from liteframe.training.guarded_module import GuardedModule, gradient_norm
from liteframe.training.replay_dump import Dump, read_dump
from liteframe.training.rng import set_torch_states

# Another device or version rounds otherwise; a transient fault of memory changes a loss by far more.
TOLERANCE = 1e-2


class FirstNonFinite:
    """Notes where the first value that is not finite appears, in the forward and in the backward pass.

    Args:
        modules: roots to watch with all modules inside, by name.
    """

    def __init__(self, modules: dict[str, nn.Module]):
        self.forward = self.backward = "nowhere"
        self._handles = [
            part.register_forward_hook(self._hook(".".join(filter(None, (name, inner)))))
            for name, root in modules.items()
            for inner, part in root.named_modules()
            if name or inner
        ]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            bad = [tensor for tensor in floats(output) if not tensor.isfinite().all()]
            if bad and self.forward == "nowhere":
                fed = all(tensor.isfinite().all() for tensor in floats(inputs))
                self.forward = f"output of {name}, from {'finite' if fed else 'non-finite'} input"
            for tensor in floats(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._look(gradient, name))

        return after

    def _look(self, gradient: Tensor, name: str) -> None:
        if self.backward == "nowhere" and not gradient.isfinite().all():
            self.backward = f"gradient of the output of {name}"


def floats(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested tuples, lists and dicts (also transformers' outputs)."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from floats(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from floats(item)


def replay(module: GuardedModule, data: LightningDataModule, trainer: Trainer, folder: Path) -> bool:
    """Do the step of a dump again and print what it gives.

    Args:
        module: built from the dump's configuration, not yet set up.
        data: as `module`.
        trainer: of one device; its fit is not called.
        folder: the dump.

    Returns:
        Whether the recorded losses and norm came out again.

    Raises:
        ValueError: the dump is damaged, or belongs to another kind of run.
    """
    dump = read_dump(folder)
    _prepare(module, data, trainer, dump)
    state = dump.state
    print(f"{folder}: step {state['step']}, stopped because {state['reason']}")
    found = FirstNonFinite(module.watched_modules())
    same = True
    total = state["world_size"] * state["accumulate"]
    for rank, tensors in enumerate(dump.batches):
        for turn, fields in enumerate(state["fields"][rank]):
            own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{turn}.")}
            loss, watched = _loss(module, trainer, own, dict(fields))
            (loss / total).backward()
            recorded = float(fields["recorded_loss"])
            same &= agree(loss.item(), recorded)
            broken = [name for name, tensor in watched.items() if not tensor.isfinite().all()]
            print(
                f"rank {rank}, batch {turn}: loss {loss.item():.6g} (recorded {recorded:.6g}); "
                f"not finite: {', '.join(broken) or 'nothing'}"
            )
    found.remove()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    module.finish_gradients([parameter for _, parameter in named], total)
    norm = gradient_norm([parameter for _, parameter in named]).item()
    same &= agree(norm, float(state["norm"]))
    print(f"gradient norm {norm:.6g} (recorded {float(state['norm']):.6g}, median before {float(state['median']):.6g})")
    for part, parameters in _parts(named).items():
        print(f"  {gradient_norm(parameters).item():>12.6g}  {part}")
    print(f"first value that is not finite, forward: {found.forward}")
    print(f"first value that is not finite, backward: {found.backward}")
    print(
        "the step comes out as recorded"
        if same
        else "the step does NOT come out as recorded: suspect the device's memory, or another version of a library"
    )
    return same


def agree(value: float, recorded: float) -> bool:
    """Whether two numbers are the same but for rounding; two that are not finite agree."""
    if not (math.isfinite(value) and math.isfinite(recorded)):
        return math.isfinite(value) == math.isfinite(recorded)
    return math.isclose(value, recorded, rel_tol=TOLERANCE)


def _prepare(module: GuardedModule, data: LightningDataModule, trainer: Trainer, dump: Dump) -> None:
    """What Trainer.fit does before its first step, with the weights of the dump."""
    if dump.state["module"] != type(module).__name__:
        raise ValueError(f"the dump is of a {dump.state['module']}, its configuration gives a {type(module).__name__}")
    module.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    data.setup("fit")
    module.configure_model()
    module.load_state_dict(dump.weights)
    for name, value in dump.state["attributes"].items():
        setattr(module, name, value)
    module.to(trainer.strategy.root_device).train()


def _loss(
    module: GuardedModule, trainer: Trainer, tensors: dict[str, Tensor], fields: dict[str, Any]
) -> tuple[Tensor, dict[str, Tensor]]:
    device = trainer.strategy.root_device
    states = {name.removeprefix("rng_"): t for name, t in tensors.items() if name.startswith("rng_")}
    extra = {name.removeprefix("extra_"): t for name, t in tensors.items() if name.startswith("extra_")}
    others = {name: t.to(device) for name, t in tensors.items() if not name.startswith(("rng_", "extra_"))}
    del fields["recorded_loss"]
    batch = module.batch_from({**fields, **others})
    module.take_extra_tensors(batch, extra)
    set_torch_states(states, device)
    with trainer.precision_plugin.forward_context():
        return module.step_loss(batch)


def _parts(named: list[tuple[str, nn.Parameter]]) -> dict[str, list[Tensor]]:
    """Parameters by block: names up to their first number, or without their last word."""
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in named:
        words = name.split(".")
        end = next((place + 1 for place, word in enumerate(words) if word.isdigit()), len(words) - 1)
        parts.setdefault(".".join(words[:end]), []).append(parameter)
    return parts
