"""What training computes behind the networks is never rounded to half precision: inside autocast against float64."""

import pytest
import torch
from liteframe_kernels.weighted_average_pool.reference import query_logits
from worlds.vlms import random_internvl

from liteframe.align.objectives.sft import answer_loss
from liteframe.distill.losses import clip_losses, drop_large_losses, token_losses
from liteframe.distill.metrics import HeldOutMetrics
from liteframe.distill.panel import pca_colors
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetNormalizer, TargetSettings
from liteframe.models.student.encoder import resample_positions
from liteframe.models.teacher.huggingface import VlmProjector
from liteframe.models.teacher.saliency import probe_logits
from liteframe.models.vlm.family import family_of
from liteframe.reduce.wap import weighted_average_pool

CHANNELS = 32
SLOTS = torch.tensor([[True, True], [True, False]])


def drawn(name, *shape):
    """float64, the same for a name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def features(name, dtype):
    """[2,2,4,4,C] with a mean that half precision could not tell from its neighbors."""
    return (drawn(name, 2, 2, 4, 4, CHANNELS) + 30).to(dtype)


def frames(name, dtype):
    """[2,5,4,4,C]: the last window is not full."""
    return 2 * drawn(name, 2, 5, 4, 4, CHANNELS).to(dtype)


def statistics(dtype):
    running = RunningStatistics(CHANNELS)
    running.update(features("teacher", dtype).flatten(0, 3))
    return running.freeze()


def target(clipping, dtype):
    normalizer = TargetNormalizer(CHANNELS, TargetSettings(clipping=clipping, sigmas=1.0)).to(dtype)
    normalizer.fit(statistics(torch.float64))
    made = normalizer(features("teacher", dtype), SLOTS)
    return torch.cat([made.values.flatten(), made.weight.flatten(), made.clipped[None]])


def loss(name, dtype):
    prediction, wanted = features("student", dtype), features("teacher", dtype)
    losses = token_losses(prediction, wanted, name)
    return clip_losses(losses, drop_large_losses(losses, torch.ones_like(losses), 2.0))


def held_out(dtype):
    config = random_internvl().config
    family = family_of(config.model_type)
    with torch.device("meta"):
        mlp = family.teacher_half(config).model.multi_modal_projector
    mlp = mlp.to_empty(device="cpu").to(dtype)
    for name, weight in mlp.named_parameters():
        weight.data = drawn(name, *weight.shape).to(dtype) / 8
    metrics = HeldOutMetrics(config.vision_config.hidden_size, projected=True).to(dtype)
    student, teacher = features("student", dtype), features("teacher", dtype)
    metrics.update(student, teacher, SLOTS, VlmProjector(family, config, mlp))
    return torch.stack(list(metrics.compute().values()))


def answers(dtype):
    labels = torch.arange(12).reshape(2, 6) % 5
    loss = answer_loss(8 * drawn("logits", 2, 5, 9).to(dtype), labels, torch.arange(5))
    return torch.stack([loss.total, loss.correct.to(dtype)])


def probed(dtype):
    names = [("tokens", 3, 10), ("probe",), ("query", CHANNELS), ("bias",), ("key", CHANNELS)]
    tokens, probe, query, bias, key = (drawn(name, *size, CHANNELS).to(dtype) for name, *size in names)
    return probe_logits(tokens, probe, (query, bias), key / 8, 4)


def pooled(by, scope, dtype):
    weights = {"query": frames("query", dtype)[:, :, 0, 0]} if by == "query" else {}
    weights |= {"logits": 4 * drawn("logits", 2, 5, 4, 4).to(dtype)} if by == "logits" else {}
    return weighted_average_pool(frames("patches", dtype), **weights, scope=scope)


CASES = {
    **{
        f"WAP by {by}, over the {scope}": (pooled, by, scope)
        for by in ("query", "logits", "nothing")
        for scope in ("block", "frame")
    },
    "WAP's logits": (lambda dtype: query_logits(frames("patches", dtype), frames("query", dtype)[:, :, 0, 0]),),
    "a probe's logits": (probed,),
    "statistics": (lambda dtype: torch.cat([statistics(dtype).mean, statistics(dtype).std]),),
    **{f"target, {clipping}": (target, clipping) for clipping in ("channel_clamp", "token_mask", "none")},
    **{f"loss {name}": (loss, name) for name in ("mse", "smooth_l1", "cosine+smooth_l1")},
    "held-out figures": (held_out,),
    "colors of tokens": (lambda dtype: pca_colors(features("teacher", dtype)[0], features("student", dtype)[0])[1],),
    "answers' loss": (answers,),
    "positions": (lambda dtype: resample_positions(drawn("table", 1, 17, CHANNELS).to(dtype), (4, 4), (6, 3)),),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_rounded_inside_autocast(case):
    function, *arguments = CASES[case]
    exact = function(*arguments, torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = function(*arguments, torch.float32)
    assert ours.dtype in (torch.float32, torch.float64)
    # bfloat16 has 8 bits: one rounding is 4e-3.
    torch.testing.assert_close(ours.double(), exact.double(), rtol=2e-5, atol=2e-5)
