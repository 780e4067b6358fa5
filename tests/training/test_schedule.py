import itertools
import math

import pytest
import torch
from worlds.students import student_config

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.schedule import OptimizerSettings, configure_optimizer, learning_rate_factor, parameter_groups

CONFIG = student_config(dim=16, depth=2, image_size=32, teacher_dim=24, clip_frames=4)


def test_decay_for_matrices_only():
    student = LiteFrameEncoder(CONFIG)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, others = parameter_groups(student, OptimizerSettings(weight_decay=0.05))
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {names[id(p)].removeprefix("blocks.0.").removeprefix("blocks.1.") for p in decayed["params"]} == {
        "patch_embed.weight", "head.weight", "attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"
    }  # fmt: skip
    rest = {names[id(p)] for p in others["params"]}
    assert {"pos_embed", "cls_token", "blocks.0.ls1", "blocks.1.norm2.weight", "blocks.0.temporal.weight",
            "downsample.1.weight", "head.bias"} <= rest  # fmt: skip
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_frozen_parameters_are_left_out():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(layer, OptimizerSettings(weight_decay=0.1))] == [1]


def test_shape_of_the_schedule():
    factors = [learning_rate_factor(step, total=100, warmup=10, final=0.1) for step in range(120)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[9] == pytest.approx(10 / 11)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factors[100:] == [pytest.approx(0.1)] * 20
    assert all(a > b for a, b in itertools.pairwise(factors[10:101]))


def test_optimizer_follows_it():
    made = configure_optimizer(torch.nn.Linear(2, 2), OptimizerSettings(lr=2.0, warmup_steps=1000), total_steps=50)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    # A short run warms up for a tenth of its steps.
    assert rates.index(max(rates)) == 5
    assert max(rates) == 2.0


@pytest.mark.parametrize(("field", "value"), [("lr", 0), ("lr", math.nan), ("weight_decay", -1), ("final_lr_ratio", 2)])
def test_bad_settings(field, value):
    with pytest.raises(ValueError, match=f"optimizer.{field}"):
        OptimizerSettings(**{field: value})
