import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from liteframe.data.preprocess import FrameTransform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def frames():
    # smooth enough that one level of rounding in the resize stays one level
    draw = np.random.default_rng(0).normal(size=(3, 9, 12, 3))
    images = [Image.fromarray(np.uint8(127 + 60 * np.tanh(frame))).resize((120, 90), Image.BICUBIC) for frame in draw]
    return np.stack([np.asarray(image) for image in images])


def by_pil(frame, transform):
    image = transform(Image.fromarray(frame))
    values = np.asarray(image, dtype=np.float64) / 255
    return ((values - MEAN) / STD).transpose(2, 0, 1)


# PIL and torchvision round twice each (rows, then columns): two levels of 255, in units of the smallest std
LEVEL = 2.05 / 255 / min(STD)


@pytest.mark.parametrize("size", [(56, 56), (28, 84), (140, 196)])
def test_squash_is_pils_bicubic(frames, size):
    out = FrameTransform(size, MEAN, STD)(frames)
    assert out.shape == (3, 3, *size)
    assert out.dtype == torch.float32
    for ours, frame in zip(out, frames, strict=True):
        theirs = by_pil(frame, lambda image: image.resize(size[::-1], Image.BICUBIC))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=LEVEL)


@pytest.mark.parametrize("turn", [False, True])
def test_crop_is_resize_and_centre_crop(frames, turn):
    frames = frames.transpose(0, 2, 1, 3).copy() if turn else frames
    out = FrameTransform(56, MEAN, STD, resize="crop")(torch.from_numpy(frames))
    assert out.shape == (3, 3, 56, 56)
    resize = tv.Compose([tv.Resize(56, tv.InterpolationMode.BICUBIC), tv.CenterCrop(56)])
    for ours, frame in zip(out, frames, strict=True):
        np.testing.assert_allclose(ours.numpy(), by_pil(frame, resize), atol=LEVEL)


def test_crop_to_a_rectangle_covers_it(frames):
    out = FrameTransform((28, 84), MEAN, STD, resize="crop")(frames)
    assert out.shape == (3, 3, 28, 84)


def test_no_resize_is_exact(frames):
    out = FrameTransform((90, 120), MEAN, STD)(frames)
    np.testing.assert_allclose(out[1].numpy(), by_pil(frames[1], lambda image: image), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, MEAN, STD), "at least one pixel"),
        ((56, MEAN[:2], STD), "three values"),
        ((56, MEAN, (0.2, 0.0, 0.2)), "std above 0"),
        ((56, MEAN, STD, "pad"), "squash, crop, aspect"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        FrameTransform(*arguments)


def test_bad_frames(frames):
    transform = FrameTransform(56, MEAN, STD)
    with pytest.raises(ValueError, match=r"expected uint8 \[T,H,W,3\]"):
        transform(frames.astype(np.float32))
    with pytest.raises(ValueError, match=r"expected uint8 \[T,H,W,3\]"):
        transform(frames.transpose(0, 3, 1, 2))
