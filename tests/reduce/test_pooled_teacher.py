"""The road from a teacher to pooled features: which frames count, in which precision, and what it was weighed by."""

import math

import pytest
import torch

from liteframe.models.teacher.base import Teacher, TeacherFeatures, Tower
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher, coarser, factor_between
from liteframe.reduce.wap import real_slots


class GivenFeatures(Tower):
    """Emits stored features, whatever it is shown."""

    def __init__(self, patches, query=None, logits=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.features = TeacherFeatures(patches, query, logits)

    def forward(self, video):
        frames = video.shape[1]
        return TeacherFeatures(*(None if x is None else x[:, :frames] for x in self.features))

    def vit_weights(self):
        raise ValueError


def pooled_teacher(patches, query=None, logits=None, **settings):
    tower = GivenFeatures(patches, query, logits)
    norm = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "resize": "squash"}
    teacher = Teacher(tower, name="given", dim=patches.shape[-1], patch_size=8, image_size=32, **norm)
    return PooledTeacher(teacher, **settings)


def video_of(patches):
    return torch.zeros(*patches.shape[:2], 3, 32, 32)


def test_filling_frames_weigh_nothing():
    generator = torch.Generator().manual_seed(0)
    patches, query = torch.randn(1, 8, 4, 4, 6, generator=generator), torch.randn(1, 8, 6, generator=generator)
    mask = torch.tensor([[True] * 3 + [False] * 5])
    tokens, slots, unasked, _ = pooled_teacher(patches, query)(video_of(patches), mask)
    assert slots.tolist() == [[True, False]]
    assert unasked is None
    logits, values = [], []
    for t in range(3):
        for y in (2, 3):
            for x in (0, 1):
                logits.append(float(patches[0, t, y, x] @ query[0, t]) / math.sqrt(6))
                values.append(patches[0, t, y, x].double())
    weights = [math.exp(value - max(logits)) for value in logits]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert torch.allclose(tokens[0, 0, 1, 0].double(), expected, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 5, 7])
def test_any_length_is_filled_with_frames_that_weigh_nothing(frames):
    patches, query = torch.randn(2, frames, 4, 4, 6), torch.randn(2, frames, 6)
    mask = torch.ones(2, frames, dtype=torch.bool)
    mask[0, 1:2] = False
    tokens, slots, *_ = pooled_teacher(patches, query)(video_of(patches), mask)
    # Filled by hand, with frames that would show if they counted.
    filler = -frames % 4
    long = torch.cat([patches, torch.full((2, filler, 4, 4, 6), 100.0)], 1)
    long_query = torch.cat([query, torch.full((2, filler, 6), 100.0)], 1)
    long_mask = torch.cat([mask, torch.zeros(2, filler, dtype=torch.bool)], 1)
    by_hand = pooled_teacher(long, long_query)(video_of(long), long_mask)
    assert torch.equal(tokens, by_hand.tokens)
    assert torch.equal(slots, by_hand.slots)
    unmasked = pooled_teacher(patches, query)(video_of(patches))
    assert torch.equal(unmasked.tokens[1], tokens[1])
    assert unmasked.slots.all()


def test_everything_behind_the_teacher_is_float32():
    patches, query = torch.randn(1, 4, 4, 4, 32).bfloat16(), 3 * torch.randn(1, 4, 32).bfloat16()
    exact = pooled_teacher(patches.float(), query.float())(video_of(patches)).tokens
    vision = pooled_teacher(patches, query)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, _, logits, _ = vision(video_of(patches), logits=True)
    assert tokens.dtype == logits.dtype == torch.float32
    assert torch.equal(tokens, exact)
    assert torch.equal(PooledEncoder(vision)(video_of(patches)), exact)
    assert PooledEncoder(vision.to(torch.bfloat16))(video_of(patches)).dtype == torch.bfloat16


def test_logits_are_what_wap_weighs_by():
    patches, query, logits = torch.randn(1, 4, 2, 2, 4), torch.randn(1, 4, 4), torch.randn(1, 4, 2, 2)
    video = video_of(patches)
    assert torch.equal(pooled_teacher(patches, logits=logits)(video, logits=True).logits, logits)
    by_query = pooled_teacher(patches, query)(video, logits=True)
    assert torch.allclose(by_query.logits[0, 1, 1, 0], patches[0, 1, 1, 0] @ query[0, 1] / 2)
    assert torch.allclose(pooled_teacher(patches, logits=by_query.logits)(video).tokens, by_query.tokens, atol=1e-6)
    assert pooled_teacher(patches)(video, logits=True).logits is None


def test_the_softmax_runs_over_windows_or_frames():
    patches, query = torch.randn(1, 4, 4, 4, 6), torch.randn(1, 4, 6)
    query[0, 0] *= 30  # its frame wins a window, and cannot where each frame has a softmax of its own
    block, frame = (
        pooled_teacher(patches, query, softmax_over=over)(video_of(patches)).tokens for over in ("block", "frame")
    )
    assert not torch.allclose(block, frame)


def test_slots_that_count():
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    assert real_slots(mask, 4).tolist() == [[True, True], [True, False]]
    assert real_slots(mask, 1).equal(mask)


@pytest.mark.parametrize("over", ["block", "frame"])
@pytest.mark.parametrize("weighed_by", ["query", "logits", "nothing"])
def test_larger_windows_follow_from_smaller_ones(over, weighed_by):
    """Against WAP over the larger windows; 7 frames, of which some count nothing, fill no window of 4 or 8."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(3, 7, 4, 4, 6, generator=generator, dtype=torch.float64)
    by = {"query": {"query": 3 * torch.randn(3, 7, 6, generator=generator, dtype=torch.float64)},
          "logits": {"logits": 3 * torch.randn(3, 7, 4, 4, generator=generator)},
          "nothing": {}}[weighed_by]  # fmt: skip
    mask = torch.ones(3, 7, dtype=torch.bool)
    mask[0, 1:5] = mask[1, 2:] = False

    def pooled(window):
        vision = pooled_teacher(patches, **by, window=window, softmax_over=over)
        return vision(video_of(patches), mask, log_weights=True)

    for small, large in [
        ((1, 2, 2), (8, 2, 2)),
        ((2, 2, 2), (4, 4, 4)),
        ((1, 1, 1), (4, 2, 2)),
        ((1, 2, 2), (2, 2, 2)),
    ]:
        made, direct = coarser(pooled(small), factor_between(small, large)), pooled(large)
        assert made.slots.equal(direct.slots)
        torch.testing.assert_close(made.tokens, direct.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(made.log_weights, direct.log_weights, rtol=1e-5, atol=1e-5)
        assert pooled_teacher(patches, **by)(video_of(patches)).log_weights is None
    plain = pooled_teacher(patches, **by)(video_of(patches))
    with pytest.raises(ValueError, match="without log_weights"):
        coarser(plain, (2, 1, 1))
    with pytest.raises(ValueError, match=r"windows of \(4, 2, 2\) are not made of windows of \(2, 4, 2\)"):
        factor_between((2, 4, 2), (4, 2, 2))


def test_the_weight_of_a_window_is_the_log_of_a_sum_of_exponentials():
    logits = torch.tensor([[[[0.5, 1.0], [1.5, -1.0]], [[0.0, 2.0], [0.3, 9.9]]]])  # [1,2,2,2]
    mask = torch.tensor([[True, False]])
    made = pooled_teacher(torch.randn(1, 2, 2, 2, 6), logits=logits, window=(2, 2, 2))(
        torch.zeros(1, 2, 3, 32, 32), mask, log_weights=True
    )
    assert made.log_weights.item() == pytest.approx(math.log(sum(map(math.exp, (0.5, 1.0, 1.5, -1.0)))))
