"""LiteFrameConfig refuses what cannot work and survives JSON."""

import json

import pytest

from liteframe import LiteFrameConfig


def test_defaults_are_the_design():
    config = LiteFrameConfig()
    assert (config.dim, config.depth, config.heads, config.mlp_dim) == (768, 12, 12, 3072)
    assert config.downsample == {4: (2, 2, 2), 8: (2, 1, 1)}
    assert config.compression == (4, 2, 2)


def test_json_round_trip_restores_int_keys_and_tuples():
    config = LiteFrameConfig(downsample={2: (1, 2, 2), 12: (4, 1, 1)}, image_mean=[0.5, 0.5, 0.5], resize="crop")
    again = LiteFrameConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.downsample == {2: (1, 2, 2), 12: (4, 1, 1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 7}, "heads=7 does not divide dim=768"),
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"depth": 12.0}, "depth must be an integer"),
        ({"image_size": 450}, "image_size=450 is not a multiple"),
        ({"image_size": 14 * 31}, "14 \\* 2 = 28"),
        ({"temporal_kernel": 4}, "temporal_kernel must be odd"),
        ({"temporal_mixer": "lstm"}, "'lstm' is unknown; choose one of conv, none"),
        ({"clip_frames": 18}, "clip_frames=18 is not a multiple of the temporal stride 4"),
        ({"downsample": {13: (2, 1, 1)}}, "13 is not within 1..depth=12"),
        ({"downsample": {0: (2, 1, 1)}}, "0 is not within"),
        ({"downsample": {4: (2, 2)}}, "must be \\(t,h,w\\)"),
        ({"downsample": {4: (1, 1, 1)}}, "compresses nothing"),
        ({"downsample": {4: (2, 0, 2)}}, "downsample\\[4\\] must be an integer >= 1, got 0"),
        ({"downsample": {4: (2, 1, 1), "4": (2, 1, 1)}}, "names block 4 twice"),
        ({"downsample": [4, 8]}, "must map block"),
        ({"image_std": (0.2, 0.0, 0.2)}, "image_std must be positive"),
        ({"image_mean": (0.5,)}, "image_mean must be three numbers"),
        ({"resize": "pad"}, "resize is 'pad'; choose one of squash, crop, aspect"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be a positive number"),
    ],
)
def test_bad_values_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        LiteFrameConfig(**change)


def test_unknown_fields_and_foreign_types_are_errors():
    with pytest.raises(ValueError, match="no field named widht"):
        LiteFrameConfig.from_dict({"widht": 3})
    with pytest.raises(ValueError, match=r"'vit'.*not a LiteFrame encoder"):
        LiteFrameConfig.from_dict({"model_type": "vit"})
