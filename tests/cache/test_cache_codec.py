"""Codecs against loops in float64, and the errors that performance measurements on synthetic features found."""

import math

import numpy as np
import pytest
import torch

from liteframe.distill.cache.codec import TargetCodec, clip_bytes, decode_jpeg, encode_jpeg
from liteframe.distill.statistics import ChannelStatistics

SHAPE = (4, 8, 8, 256)


def vit_like(seed=0, shape=SHAPE):
    """Log-normal scales of channels, six of them 30 times larger, means, and one token in a hundred five times."""
    rng = np.random.default_rng(seed)
    scale = rng.lognormal(size=shape[-1])
    scale[rng.choice(shape[-1], 6, replace=False)] *= 30
    features = rng.normal(size=shape) * scale
    features[rng.random(shape[:-1]) < 0.01] *= 5
    features += 0.3 * scale * rng.normal(size=shape[-1])
    return torch.tensor(features, dtype=torch.float32)


def codec_for(name, features):
    flat = features.double().flatten(0, -2)
    statistics = ChannelStatistics(len(flat), flat.mean(0), flat.std(0), (0.0, 1.0))
    return TargetCodec(name, statistics.mean.float(), statistics.scale.float())


def largest_rounding(codec, features, decoded):
    """Half a step of each value, which is relative in bf16 and a 127th of the token's largest value in int8."""
    if codec.name == "bf16":
        return decoded.double().abs() * 2.0**-8
    white = (features.double() - codec.mean.double()) / codec.std.double()
    step = white.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    arithmetic = 4 * torch.finfo(torch.float32).eps * (decoded.abs() + codec.mean.abs())
    return 1.001 * step / 2 * codec.std.double() + arithmetic


def whitened_error(features, decoded, codec):
    """What a loss on standardized channels sees: root mean square error over root mean square of the features."""
    std = codec.std.double()
    error = (decoded.double() - features.double()) / std
    return float(
        error.square().mean().sqrt() / ((features.double() - codec.mean.double()) / std).square().mean().sqrt()
    )


# The figures of the measurement, with a fifth of room: they were drawn from another random generator.
@pytest.mark.parametrize(("name", "figure"), [("bf16", 1.7e-3), ("int8", 7.9e-3)])
def test_error_of_each_codec(name, figure):
    features = vit_like()
    codec = codec_for(name, features)
    encoded = codec.encode(features)
    decoded = codec.decode(encoded)
    assert whitened_error(features, decoded, codec) < 1.2 * figure
    difference = (decoded.double() - features.double()).abs()
    largest = largest_rounding(codec, features, decoded)
    assert (difference <= largest).all()
    assert float((difference / largest).max()) > 0.9
    assert sum(tensor.numel() * tensor.element_size() for tensor in encoded.values()) == clip_bytes(name, SHAPE)


def test_raw_int8_would_fail():
    """The reason for whitening: a scale for each raw token leaves most channels without a bit."""
    features = vit_like()
    scale = features.abs().amax(-1, keepdim=True) / 127
    codec = codec_for("int8", features)
    assert whitened_error(features, (features / scale).round() * scale, codec) > 0.1


def test_int8_equals_a_loop_in_float64():
    features = vit_like(1, (1, 2, 2, 16))
    codec = codec_for("int8", features)
    encoded = codec.encode(features)
    decoded = codec.decode(encoded).double()
    for i in range(2):
        for j in range(2):
            token = features[0, i, j].double()
            white = [(float(x) - float(m)) / float(s) for x, m, s in zip(token, codec.mean, codec.std, strict=True)]
            scale = max(map(abs, white)) / 127
            assert math.isclose(float(encoded["scale"][0, i, j]), scale, rel_tol=1e-5)
            for channel, value in enumerate(white):
                code = int(encoded["target"][0, i, j, channel])
                assert abs(code - value / scale) <= 0.5 + 1e-4
                expected = code * scale * float(codec.std[channel]) + float(codec.mean[channel])
                assert math.isclose(float(decoded[0, i, j, channel]), expected, rel_tol=1e-4, abs_tol=1e-4)


def test_constant_channels_and_blank_clips_survive():
    features = vit_like(3)
    features[..., 5] = 2.0
    for name in ("bf16", "int8"):
        codec = codec_for(name, features)
        for clip in (features, torch.zeros_like(features), codec.mean.expand(SHAPE)):
            encoded = codec.encode(clip)
            decoded = codec.decode(encoded).float()
            assert ((decoded - clip).abs() <= largest_rounding(codec, clip, decoded) + 1e-6).all()


def test_what_is_not_finite_is_refused():
    features = vit_like()
    features[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        codec_for("bf16", vit_like()).encode(features)


def test_jpeg():
    y, x = np.mgrid[0:56, 0:84]
    frame = np.stack([127 + 100 * np.sin(x / 9), 127 + 100 * np.cos(y / 7), (x + y) % 256], -1).astype(np.uint8)
    sizes, errors = [], []
    for quality in (50, 90):
        data = encode_jpeg(frame, quality)
        sizes.append(len(data))
        errors.append(np.abs(decode_jpeg(data, (56, 84)).astype(int) - frame).mean())
    assert sizes[0] < sizes[1] < frame.nbytes
    assert errors[1] < errors[0] < 12
    with pytest.raises(ValueError, match=r"\(56, 84\) pixels"):
        decode_jpeg(data, (84, 56))
    with pytest.raises(ValueError, match="not a JPEG"):
        decode_jpeg(b"GIF89a" + data, (56, 84))
