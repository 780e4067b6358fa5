"""Muon against the singular values of float64, torch's own Muon, AdamW, and itself: saved, and with divided weights."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from worlds.students import student_config

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.muon import Muon, orthogonalize
from liteframe.training.schedule import OptimizerSettings, configure_optimizer, go_on
from liteframe.training.sharded import WHOLE, full_tensor, sharded_like

CONFIG = student_config(dim=16, depth=2, image_size=32, teacher_dim=24, clip_frames=4)


def quintic(values):
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 5, 7), (1, 6, 6)])
def test_singular_values_go_to_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    expected = u @ torch.diag_embed(quintic(s / s.norm(dim=-1, keepdim=True))) @ v
    assert (orthogonalize(matrices) - expected).abs().max() < 1e-10
    assert (orthogonalize(matrices.float()) - expected).abs().max() < 1e-4
    assert orthogonalize(torch.zeros(shape)).abs().max() == 0
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert 0.3 < values.min() < values.max() < 1.3


def trained(model, optimizer, steps, first=0):
    """Steps on gradients that are drawn by step number."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("split", [True, False])
def test_it_is_torch_s_own_with_q_k_and_v_apart_or_as_one_and_adamw_for_the_rest(split):
    torch.manual_seed(0)
    student = LiteFrameEncoder(CONFIG)
    settings = OptimizerSettings(kind="muon", lr=0.01, muon_lr=0.03, split_qkv=split, weight_decay=0.1)
    optimizer = configure_optimizer(student, settings, total_steps=100)["optimizer"]
    ours = dict(student.named_parameters())
    start = {name: p.detach().clone() for name, p in ours.items()}
    hidden = [
        f"blocks.{n}.{layer}.weight" for n in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ]
    pieces = {
        name: [part.clone() for part in start[name].chunk(3 if split and "qkv" in name else 1)] for name in hidden
    }
    muon = torch.optim.Muon([p for parts in pieces.values() for p in parts], lr=0.03, weight_decay=0.1,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    others = {name: tensor.clone() for name, tensor in start.items() if name not in hidden}
    decayed = [tensor for name, tensor in others.items() if name in ("patch_embed.weight", "head.weight")]
    kept = [tensor for name, tensor in others.items() if name not in ("patch_embed.weight", "head.weight")]
    adamw = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}],
                              lr=0.01, betas=(0.9, 0.95))  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]  # it has warmed up
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in ours.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            parts = pieces.get(name) or [others[name]]
            for part, gradient in zip(parts, parameter.grad.chunk(len(parts)), strict=True):
                part.grad = gradient.clone()
        optimizer.step()
        muon.step()
        adamw.step()
    for name, parameter in ours.items():
        if name in others:
            assert torch.equal(parameter, others[name]), name
        else:
            moved, expected = parameter - start[name], torch.cat(pieces[name]) - start[name]
            assert (moved - expected).norm() < 0.02 * expected.norm(), name  # torch's steps are of bfloat16


def test_a_saved_one_goes_on_bit_for_bit():
    torch.manual_seed(0)
    straight = LiteFrameEncoder(CONFIG)
    made = configure_optimizer(straight, OptimizerSettings(kind="muon"), total_steps=6)["optimizer"]
    trained(straight, made, 2)
    resumed = copy.deepcopy(straight)
    again = configure_optimizer(resumed, OptimizerSettings(kind="muon"), total_steps=6)["optimizer"]
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    trained(straight, made, 2, first=2)
    trained(resumed, again, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    fresh = configure_optimizer(copy.deepcopy(straight), OptimizerSettings(kind="muon"), total_steps=6)["optimizer"]
    assert fresh.state_dict()["state"] == {}


def test_without_gradients_nothing_moves():
    student = LiteFrameEncoder(CONFIG)
    optimizer = configure_optimizer(student, OptimizerSettings(kind="muon"), total_steps=6)["optimizer"]
    trained(student, optimizer, 1)
    before, moments = copy.deepcopy(student.state_dict()), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    for number, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments["state"][number][name]) for name, value in state.items())


@pytest.fixture
def mesh(tmp_path):
    """A mesh of one process: tensors are divided as by FSDP2. Two processes are in tests/distributed."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_divided_weights_take_the_same_steps_and_go_on_with_whole_moments(mesh):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6) for _ in range(3)]
    optimizers = []
    for number, layer in enumerate(layers):
        layer.load_state_dict(layers[0].state_dict())
        if number:
            fully_shard(layer, mesh=mesh)
        groups = [{"params": [layer.weight], "lr": 0.1, "weight_decay": 0.1, "pieces": 3},
                  {"params": [layer.bias], "lr": 0.1, "weight_decay": 0.0}]  # fmt: skip
        optimizers.append(Muon(groups, (0.9, 0.95)))

    def step(*numbers):
        gradients = [torch.randn(6, 4), torch.randn(6)]
        for number in numbers:
            for parameter, gradient in zip(layers[number].parameters(), gradients, strict=True):
                parameter.grad = sharded_like(parameter, gradient)
            optimizers[number].step()

    def weights(number):
        return [full_tensor(parameter) for parameter in layers[number].parameters()]

    for _ in range(3):
        step(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(1), strict=True))
    state = get_optimizer_state_dict(layers[1], optimizers[1], options=WHOLE)
    layers[2].load_state_dict(layers[1].state_dict())
    set_optimizer_state_dict(layers[2], optimizers[2], state, options=WHOLE)
    step(0, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(2), strict=True))
    assert not torch.equal(layers[0].weight, weights(1)[0])


def test_what_muon_cannot_train_is_refused():
    with pytest.raises(ValueError, match=r"\[4\]"):
        Muon(
            [{"params": [torch.nn.Parameter(torch.zeros(4))], "lr": 1.0, "weight_decay": 0.0, "pieces": 1}], (0.9, 0.95)
        )
    with pytest.raises(ValueError, match=r"\[4, 2\] of 3"):
        Muon(
            [{"params": [torch.nn.Parameter(torch.zeros(4, 2))], "lr": 1.0, "weight_decay": 0.0, "pieces": 3}],
            (0.9, 0.95),
        )
    with pytest.raises(ValueError, match=r"muon_lr=0\.1 has no effect with optimizer\.kind=adamw"):
        OptimizerSettings(muon_lr=0.1)
    with pytest.raises(ValueError, match=r"split_qkv=false has no effect with optimizer\.kind=adamw"):
        OptimizerSettings(split_qkv=False)
    with pytest.raises(ValueError, match=r"optimizer\.kind=muon: nothing here"):
        configure_optimizer(torch.nn.Linear(2, 2), OptimizerSettings(kind="muon"), total_steps=3)


def test_continued_with_another_rate_it_takes_it_and_keeps_its_momentum():
    torch.manual_seed(0)
    student = LiteFrameEncoder(CONFIG)

    def made(**changes):
        return configure_optimizer(student, OptimizerSettings(kind="muon", **{"lr": 0.01, **changes}), total_steps=100)

    before = made()
    trained(student, before["optimizer"], 2)
    now = made()
    now["optimizer"].load_state_dict(before["optimizer"].state_dict())
    now["lr_scheduler"]["scheduler"].load_state_dict(before["lr_scheduler"]["scheduler"].state_dict())
    go_on(now["optimizer"], now["lr_scheduler"]["scheduler"], made(lr=0.02, muon_lr=0.05, weight_decay=0.0))
    warm = 1 / 11  # of the peak, in the first step
    for group, old in zip(now["optimizer"].param_groups, before["optimizer"].param_groups, strict=True):
        assert group["lr"] == pytest.approx((0.05 if "pieces" in group else 0.02) * warm)
        assert group["weight_decay"] == 0
        for parameter, other in zip(group["params"], old["params"], strict=True):
            kept, was = now["optimizer"].state[parameter], before["optimizer"].state[other]
            assert kept.keys() == was.keys()
            assert all(torch.equal(kept[name], was[name]) for name in was)
    start = student.blocks[0].mlp.fc1.weight.detach().clone()
    trained(student, now["optimizer"], 1, first=2)
    assert not torch.equal(student.blocks[0].mlp.fc1.weight, start)
