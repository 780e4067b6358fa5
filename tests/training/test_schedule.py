import itertools
import math

import pytest
import torch
from worlds.students import student_config

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.training.schedule import OptimizerSettings, Schedule, configure_optimizer, go_on, parameter_groups

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
    factors = [Schedule(total=100, warmup=10, final=0.1)(step) for step in range(120)]
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


def restored(before, now, steps):
    """A run of `steps` steps with some settings and its checkpoint, continued with others: rates before and after."""
    rates = []

    def train(made, count):
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        for _ in range(count):
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return optimizer, schedule

    def made(settings):
        parts = torch.nn.ModuleDict({"trunk": torch.nn.Linear(2, 2), "slow": torch.nn.Linear(2, 2)})
        for parameter in parts.parameters():
            parameter.grad = torch.ones_like(parameter)
        settings = {"total_steps": 100, "ratio": 0.2, "warmup_steps": 10, **settings}
        total, slower = settings.pop("total_steps"), {"slow": settings.pop("ratio")}
        return configure_optimizer(parts, OptimizerSettings(**settings), total, slower)

    optimizer, schedule = train(made(before), steps)
    saved = optimizer.state_dict(), schedule.state_dict()
    continued = made(now)
    continued["optimizer"].load_state_dict(saved[0])
    continued["lr_scheduler"]["scheduler"].load_state_dict(saved[1])
    go_on(continued["optimizer"], continued["lr_scheduler"]["scheduler"], made(now))
    total = now.get("total_steps", 100)
    train(continued, max(0, total - steps) + 1)
    return rates, continued["optimizer"]


def test_a_run_that_is_continued_unchanged_has_the_rates_of_one_that_was_not_stopped():
    straight, _ = restored({}, {}, 0)
    for steps in (1, 10, 37, 100):
        assert restored({}, {}, steps)[0] == straight


@pytest.mark.parametrize(("steps", "total"), [(30, 200), (70, 400), (100, 150), (60, 80), (5, 1000)])
def test_another_end_makes_no_jump(steps, total):
    straight, _ = restored({}, {}, 0)
    rates, _ = restored({}, {"total_steps": total}, steps)
    assert rates[: steps + 1] == straight[: steps + 1]
    assert rates[total] == pytest.approx([5e-6, 5e-6, 1e-6, 1e-6])
    # Never further in a step than a cosine from the peak goes over so many steps, or than the warm-up.
    steepest = 5e-4 * max(math.pi / 2 / max(1, total - max(steps, 10)), math.pi / 2 / 90, 1 / 11)
    trunk = [rate[0] for rate in rates]
    assert max(abs(a - b) for a, b in itertools.pairwise(trunk)) <= steepest * 1.001
    if steps >= 10:
        middle = (steps + total) // 2
        assert trunk[middle] == pytest.approx((trunk[steps] + 5e-6) / 2)  # half of the way in half of the time
    else:  # the warm-up goes on as it began, then the cosine to the new end
        assert trunk[10] == 5e-4
        assert trunk[505] == pytest.approx((5e-4 + 5e-6) / 2)


def test_a_second_change_goes_on_from_the_first():
    schedule = Schedule(total=100, warmup=0, final=0.0)
    schedule = schedule.extended(50, 150, 0.0)
    assert (schedule(50), schedule(100), schedule(150)) == (pytest.approx(0.5), pytest.approx(0.25), 0)
    schedule = schedule.extended(100, 300, 0.05)
    assert (schedule(100), schedule(200), schedule(300)) == (pytest.approx(0.25), pytest.approx(0.15), 0.05)
    assert schedule.extended(200, 300, 0.05) is schedule


def test_a_rate_of_zero_for_good_is_refused():
    ended = Schedule(total=100, warmup=10, final=0.0)
    assert ended.extended(99, 200, 0.0)(99) == ended(99) > 0
    with pytest.raises(ValueError, match=r"come down to 0 at step 100.*start another run.*final_lr_ratio"):
        ended.extended(100, 200, 0.0)
    assert ended.extended(100, 200, 0.1)(150) == pytest.approx(0.05)


def test_what_is_asked_of_a_continued_optimizer_is_what_it_does():
    asked = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.8, 0.9), "ratio": 1.0}
    straight, _ = restored({}, {}, 0)
    for before, now in (({}, asked), (asked, {})):
        rates, optimizer = restored(before, now, 40)
        wanted = {"lr": 5e-4, "weight_decay": 0.05, "betas": (0.9, 0.95), "ratio": 0.2} | now
        part = straight[40][0] / 5e-4
        assert rates[40] == pytest.approx([wanted["lr"] * part * ratio for ratio in (1, 1, *2 * [wanted["ratio"]])])
        assert [group["weight_decay"] for group in optimizer.param_groups] == 2 * [wanted["weight_decay"], 0]
        assert {group["betas"] for group in optimizer.param_groups} == {wanted["betas"]}
        # The moments are still those of their own parameters.
        shapes = [(2, 2), (2,)] * 2
        assert [
            tuple(optimizer.state[p]["exp_avg"].shape) for g in optimizer.param_groups for p in g["params"]
        ] == shapes
