"""Signals of both families against an eager attention in float64, and reduced features against the models' own."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from worlds.vlms import make_internvl, make_llava_onevision

from liteframe import reducers
from liteframe.models.teacher import saliency
from liteframe.models.vlm.family import INTERNVL, LLAVA_ONEVISION
from liteframe.reduce import Reduced
from liteframe.reduce.signals import FrameTower, in_frames, student_signals

WORLDS = {"internvl": (INTERNVL, make_internvl, 64), "llava_onevision": (LLAVA_ONEVISION, make_llava_onevision, 76)}
F = 5


@pytest.fixture(scope="module", params=WORLDS)
def world(request, tmp_path_factory):
    """A family, its model in float64 with eager attention, and pixels [F,3,H,W]."""
    family, make, side = WORLDS[request.param]
    folder = make(tmp_path_factory.mktemp(request.param) / "vlm")
    model = family.hf_class.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    pixels = torch.randn(F, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return family, model, pixels


def last_attention(model, pixels):
    """Weights [F,heads,N,N] and keys [F,N,C] of the last block, head by head from the states before it."""
    tower = model.model.vision_tower
    before = tower(pixels, output_hidden_states=True).hidden_states[-2]  # [F,N,C]
    if hasattr(tower.encoder, "layer"):
        block = tower.encoder.layer[-1]
        attention, x = block.attention, block.layernorm_before(before)
    else:
        block = tower.encoder.layers[-1]
        attention, x = block.self_attn, block.layer_norm1(before)
    queries, keys, d = attention.q_proj(x), attention.k_proj(x), attention.head_dim
    weights = [
        (queries[..., h * d : (h + 1) * d] @ keys[..., h * d : (h + 1) * d].mT / d**0.5).softmax(-1)
        for h in range(attention.num_heads)
    ]
    return torch.stack(weights, 1), keys


def pooled_by_loops(x, family):
    """[F,h,w] -> [F,h',w']: means of 2x2, or transformers' stride-2 bilinear."""
    if family is LLAVA_ONEVISION:
        side = (x.shape[1] + 1) // 2
        return functional.interpolate(x[:, None], size=[side, side], mode="bilinear")[:, 0]
    out = torch.empty(len(x), x.shape[1] // 2, x.shape[2] // 2, dtype=x.dtype)
    for r in range(out.shape[1]):
        for q in range(out.shape[2]):
            out[:, r, q] = x[:, 2 * r : 2 * r + 2, 2 * q : 2 * q + 2].mean((1, 2))
    return out


def test_saliency_and_keys_are_those_of_an_eager_attention(world):
    family, model, pixels = world
    tower = FrameTower(model)
    with torch.no_grad():
        weights, all_keys = last_attention(model, pixels)
    cls = family is INTERNVL
    side = model.config.vision_config.image_size
    side = (side if isinstance(side, int) else side[0]) // 8
    received = (weights[:, :, 0, 1:].mean(1) if cls else weights.mean((1, 2))).unflatten(1, (side, side))
    expected = pooled_by_loops(received, family).flatten(1)
    expected = expected / expected.sum(1, keepdim=True)
    seen = tower.see(pixels)
    signals = tower.signals(seen, tower.tokens(seen, "projected"))
    torch.testing.assert_close(signals.saliency, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(signals.saliency.sum(1), torch.ones(F, dtype=torch.float64))
    heads = model.config.vision_config.num_attention_heads
    for channel in range(all_keys.shape[-1] // heads):
        of_heads = all_keys[:, cls:, channel :: all_keys.shape[-1] // heads].mean(-1)
        pooled = pooled_by_loops(of_heads.unflatten(1, (side, side)), family).flatten(1)
        torch.testing.assert_close(signals.keys[..., channel], pooled)


def test_projected_tokens_are_the_models_own(world):
    family, model, pixels = world
    tower = FrameTower(model)
    seen = tower.see(pixels, ())
    with torch.no_grad():
        expected = family.encode_frames(model, pixels)
    assert torch.equal(tower.tokens(seen, "projected").flatten(1, 2), expected)


def test_the_global_vector_is_the_cls_token_or_says_that_it_is_not(world):
    family, model, pixels = world
    tower = FrameTower(model)
    seen = tower.see(pixels, {"glob"})
    signals = tower.signals(seen, tower.tokens(seen, "projected"), {"glob"})
    assert signals.saliency is None
    assert signals.keys is None
    if family is INTERNVL:
        with torch.no_grad():
            assert torch.equal(signals.glob, model.model.vision_tower(pixels).last_hidden_state[:, 0])
        assert signals.notes == ()
    else:
        torch.testing.assert_close(signals.glob, signals.tokens.mean(1))
        assert any("mean token" in note for note in signals.notes)
    with pytest.raises(ValueError, match="saliency"):
        signals.require("saliency")


def test_frames_and_weights_in_chunks_change_nothing(world, monkeypatch):
    _, model, pixels = world
    tower = FrameTower(model)
    seen = tower.see(pixels)
    whole = tower.signals(seen, tower.tokens(seen, "projected"))
    monkeypatch.setattr(saliency, "ATTENTION_WEIGHTS", 1)
    monkeypatch.setattr("liteframe.reduce.signals.FRAMES_AT_ONCE", 2)
    seen = tower.see(pixels)
    parts = tower.signals(seen, tower.tokens(seen, "projected"))
    for name in ("tokens", "saliency", "keys", "glob"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_half_precision_is_read_in_single(world):
    _, model, pixels = world
    exact = FrameTower(model)
    half = FrameTower(type(model)(model.config).to(torch.bfloat16).eval())
    half.model.load_state_dict(model.state_dict())
    signals = []
    for tower, frames in ((exact, pixels), (half, pixels.bfloat16())):
        seen = tower.see(frames)
        signals.append(tower.signals(seen, tower.tokens(seen, "projected")))
    assert signals[1].tokens.dtype == torch.bfloat16
    assert signals[1].saliency.dtype == signals[1].keys.dtype == torch.float32
    assert torch.cosine_similarity(signals[0].saliency.flatten(), signals[1].saliency.flatten().double(), dim=0) > 0.99


def test_what_was_not_kept_is_an_error(world):
    _, model, pixels = world
    tower = FrameTower(model)
    seen = tower.see(pixels, {"glob"})
    with pytest.raises(ValueError, match="name saliency or keys in `see` too"):
        tower.signals(seen, tower.tokens(seen, "projected"))


@pytest.mark.parametrize("name", ["average", "max", "subsample", "wap"])
def test_a_pool_acts_where_its_space_is(world, name):
    family, model, pixels = world
    tower, reducer = FrameTower(model), reducers[name]
    space = tower.space_for(reducer)
    seen = tower.see(pixels, reducer.needs)
    signals = tower.signals(seen, tower.tokens(seen, space), reducer.needs)
    if family is LLAVA_ONEVISION:
        assert space == "projected"
        reducer = dataclasses.replace(reducer, window=(4, 5, 5))  # of 5x5 tokens
    reduced = tower.project(reducer(signals, signals.count), signals.grid, space)
    if family is LLAVA_ONEVISION:
        assert reduced.slots == [(0, 3, 1), (4, 4, 1)]
        return
    assert reduced.slots == [(0, 3, 4), (4, 4, 4)]  # 8x8 patches, windows of 2x2, shuffles of 2x2
    assert reduced.frame.tolist() == [0] * 4 + [4] * 4
    assert reduced.place.tolist() == [0, 2, 8, 10] * 2  # in the 4x4 grid of the projected tokens
    assert reduced.size.tolist() == [64] * 4 + [16] * 4
    if name == "average":
        with torch.no_grad():
            means = seen.patches[:4].mean(0).unflatten(1, (4, 2)).unflatten(0, (4, 2)).mean((1, 3))  # [4,4,C]
            merged = torch.cat([means[0:2, 0:2][r, q] for r in (0, 1) for q in (0, 1)])
            expected = model.model.multi_modal_projector(merged)
        torch.testing.assert_close(reduced.tokens[0], expected)


def test_a_space_that_a_family_lacks_is_named(world):
    family, model, pixels = world
    tower = FrameTower(model)
    seen = tower.see(pixels, ())
    if family is LLAVA_ONEVISION:
        with pytest.raises(ValueError, match=r"llava_onevision has no space 'shuffled' for reducers; .*projected"):
            tower.tokens(seen, "shuffled")
        return
    signals = tower.signals(seen, tower.tokens(seen, "shuffled"), ())
    whole = Reduced.kept(signals, torch.ones(F, 16, dtype=torch.bool))
    projected = tower.project(whole, signals.grid, "shuffled")
    torch.testing.assert_close(projected.tokens, tower.tokens(seen, "projected").flatten(0, 2))


def test_the_page_shows_what_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs/reducers.md").read_text()
    code = page.partition("```python")[2].partition("```")[0]
    names = {"pixels": torch.randn(4, 3, 64, 64)}
    exec(code.replace('"my_vlm"', repr(str(make_internvl(tmp_path / "vlm")))), names)
    assert names["shown"].tokens.shape == (4, names["model"].config.text_config.hidden_size)


def test_a_student_has_tokens_alone():
    shown = Reduced.grid(torch.randn(2, 2, 3, 5), 6, (4, 2, 2))
    signals = student_signals(shown, (2, 3))
    assert signals.tokens.shape == (2, 6, 5)
    with pytest.raises(ValueError, match="glob"):
        signals.require("glob")
    keep = torch.zeros(2, 6, dtype=torch.bool)
    keep[0, 4] = keep[1, 1] = keep[1, 5] = True
    reduced = in_frames(Reduced.kept(signals, keep), shown)
    assert reduced.slots == [(0, 3, 1), (4, 5, 2)]
    assert reduced.frame.tolist() == [0, 4, 4]
    assert reduced.size.tolist() == [16, 8, 8]
    assert torch.equal(reduced.tokens, shown.tokens[[4, 7, 11]])
    with pytest.raises(ValueError, match=r"slots of \[6\] tokens are not grids of 2x2"):
        student_signals(shown, (2, 2))
