"""Towers of the Qwen-VL kind: their grids, pairs and saliency against transformers' own forward and float64."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from worlds.vlms import make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl

from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.pair_tower import unpatchified
from liteframe.models.vlm.qwen import merge_blocks
from liteframe.reduce.pooled_teacher import PooledTeacher

MAKERS = {"qwen2_5_vl": make_qwen2_5_vl, "qwen3_vl": make_qwen3_vl, "qwen3_5": make_qwen3_5}


@pytest.fixture(scope="module", params=MAKERS)
def teacher(request, tmp_path_factory):
    return load_teacher(str(MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "vlm")))


def noise(frames, height, width, seed=0):
    return torch.randn(1, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 64, 64), (2, 32, 80), (6, 48, 16)])
def test_features_are_those_of_transformers(teacher, frames, height, width):
    """Also rectangular, also where windows are cut off: what its merger makes of them is what its tower makes."""
    video, model = noise(frames, height, width), teacher.tower.model
    features = teacher(video)
    assert features.patches.shape == (1, frames // 2, height // 8, width // 8, 32)
    assert features.query is None
    assert features.logits.shape == features.patches.shape[:-1]
    torch.testing.assert_close(features.logits.exp().sum((2, 3)), torch.ones(1, frames // 2))
    grid = torch.tensor([[frames // 2, height // 8, width // 8]])
    # The order of transformers' processors, spelled out.
    pixels = [
        video[0, t : t + 2, :, y + dy : y + dy + 8, x + dx : x + dx + 8].transpose(0, 1).flatten()
        for t in range(0, frames, 2)
        for y in range(0, height, 16)
        for x in range(0, width, 16)
        for dy in (0, 8)
        for dx in (0, 8)
    ]
    with torch.no_grad():
        expected = model(torch.stack(pixels), grid_thw=grid).pooler_output
        merged = teacher.projector.mlp(merge_blocks(features.patches, 2))
    assert torch.equal(merged, expected)
    assert torch.equal(teacher.projector(features.patches).flatten(0, 3), expected)
    assert torch.equal(unpatchified(torch.stack(pixels), grid[0].tolist(), _Sizes), video[0])


class _Sizes:
    patch_size, merge_size = 8, 2


def test_what_is_painted_into_pixels_comes_back_at_its_place(teacher, monkeypatch):
    """With blocks that add nothing, a feature is what the tower's first layer makes of the patch at its own place."""
    model, width, height = teacher.tower.model, 96, 64
    for block in model.blocks:
        for layer in (block.attn.proj, getattr(block.mlp, "down_proj", None) or block.mlp.linear_fc2):
            monkeypatch.setattr(layer.weight, "data", torch.zeros_like(layer.weight))
            monkeypatch.setattr(layer.bias, "data", torch.zeros_like(layer.bias))
    if hasattr(model, "pos_embed"):
        monkeypatch.setattr(model.pos_embed.weight, "data", torch.zeros_like(model.pos_embed.weight))
    rows, columns = torch.arange(height) // 8, torch.arange(width) // 8
    video = torch.zeros(2, 4, 3, height, width)
    video[:, :, 0] += rows[:, None]
    video[:, :, 1] += columns
    video[:, :, 2] += torch.arange(8).view(2, 4, 1, 1)
    patches = teacher(video).patches
    kernel = model.patch_embed.proj
    bias = 0 if kernel.bias is None else kernel.bias
    for clip, pair, row, column in [(0, 0, 0, 0), (0, 1, 5, 7), (1, 0, 7, 2), (1, 1, 3, 11)]:
        painted = torch.tensor([float(row), float(column)])
        frames = torch.tensor([4.0 * clip + 2 * pair, 4.0 * clip + 2 * pair + 1])
        expected = (kernel.weight[:, :2] * painted.view(2, 1, 1, 1)).sum((1, 2, 3, 4))
        expected = expected + (kernel.weight[:, 2] * frames.view(2, 1, 1)).sum((1, 2, 3)) + bias
        torch.testing.assert_close(patches[clip, pair, row, column], expected)


def test_saliency_is_the_attention_received_in_the_last_block_that_sees_whole_frames(teacher):
    model, video = teacher.tower.model, noise(4, 48, 64)
    number = 1  # of three in the Qwen2.5-VL, whose last block sees windows; the last one of two elsewhere
    given = []
    hook = model.blocks[number].register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args[0], kwargs["position_embeddings"])), with_kwargs=True
    )
    found = teacher(video).logits.double().exp()
    hook.remove()
    (hidden, positions), block = given[0], model.blocks[number]
    with torch.no_grad():
        both = block.attn.qkv(block.norm1(hidden)).reshape(len(hidden), 3, 4, -1).double()
    # Rotated in float64 by hand: transformers' own function would round to float32.
    cos, sin = (x.double()[:, None] for x in positions)
    queries, keys = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (both[:, 0], both[:, 1]))
    single, _ = apply_rotary_pos_emb_vision(both[:, 0].float(), both[:, 1].float(), *positions)
    torch.testing.assert_close(single.double(), queries, rtol=1e-5, atol=1e-5)
    pairs = []
    for pair in range(2):
        own = slice(pair * 48, (pair + 1) * 48)
        scores = torch.einsum("qhd,khd->hqk", queries[own], keys[own]) / math.sqrt(8)
        pairs.append(scores.softmax(-1).mean((0, 1)))
    # The sum over a merged block does not depend on the order of tokens within it.
    received = torch.stack(pairs).unflatten(1, (-1, 4)).sum(-1)  # [2,12], blocks in the tower's order
    blocks = merge_blocks(found[..., None], 2)[0, ..., 0].sum(-1)  # [2,3,4]
    order = window_order() if hasattr(model.config, "window_size") else list(range(12))
    expected = torch.empty_like(received)
    expected[:, order] = received
    torch.testing.assert_close(blocks.flatten(1), expected, rtol=1e-5, atol=1e-7)


def window_order():
    """Blocks of a 3 x 4 grid, windows of 2 x 2 blocks one after another."""
    return [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]


def test_of_an_odd_number_of_frames_the_last_is_repeated(teacher):
    video = noise(3, 32, 32)
    even = teacher(torch.cat([video, video[:, -1:]], 1))
    odd = teacher(video)
    assert torch.equal(odd.patches, even.patches)
    assert torch.equal(odd.logits, even.logits)


def test_frames_that_do_not_fit_are_refused(teacher):
    with pytest.raises(ValueError, match=r"40x32 pixels.*merged 2x2.*multiples of 16"):
        teacher(noise(2, 40, 32))


def test_a_window_of_four_frames_is_one_of_two_pairs(teacher):
    video = noise(6, 32, 64)
    features = teacher(video)
    pooled = PooledTeacher(teacher, (4, 2, 2))(video, torch.tensor([[True] * 5 + [False]]))
    assert pooled.tokens.shape == (1, 2, 2, 4, 32)
    assert pooled.slots.tolist() == [[True, True]]
    members = features.patches[0, 0:2, 2:4, 4:6].reshape(-1, 32).double()
    weights = features.logits[0, 0:2, 2:4, 4:6].flatten().double().softmax(0)
    torch.testing.assert_close(pooled.tokens[0, 0, 1, 2].double(), weights @ members, rtol=1e-5, atol=1e-6)
    # The second slot is of the third pair, half of which is real, and of nothing.
    members, weights = features.patches[0, 2, 2:4, 4:6].reshape(-1, 32), features.logits[0, 2, 2:4, 4:6]
    torch.testing.assert_close(pooled.tokens[0, 1, 1, 2], weights.flatten().softmax(0) @ members)
    assert PooledTeacher(teacher, (4, 2, 2))(video, torch.tensor([[True] * 4 + [False] * 2])).slots.tolist() == [
        [True, False]
    ]
    dense = PooledTeacher(teacher, (2, 1, 1))(video)
    assert torch.equal(dense.tokens, features.patches)
    with pytest.raises(ValueError, match=r"window of 3 frames.* sees 2 frames at a time"):
        PooledTeacher(teacher, (3, 2, 2))


def test_a_tower_whose_blocks_all_see_windows_gives_no_saliency(tmp_path):
    with pytest.raises(ValueError, match="no block of the tower sees whole frames"):
        load_teacher(str(make_qwen2_5_vl(tmp_path / "vlm", fullatt_block_indexes=[9])))(noise(2, 32, 32))


@pytest.mark.parametrize(("part", "named"), [("merger.", "merger.linear_fc1.bias"), ("pos_embed.", "pos_embed.weight")])
def test_a_checkpoint_without_its_merger_or_its_positions_is_refused(tmp_path, part, named):
    folder = make_qwen3_vl(tmp_path / "vlm")
    weights = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if f".visual.{part}" not in name}
    assert len(left) < len(weights)
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the weights of .*vlm lack .*{named}.*name a folder that holds the whole"):
        load_teacher(str(folder))


def test_a_tower_that_sees_four_frames_at_a_time_is_refused(tmp_path):
    teacher = load_teacher(str(make_qwen3_vl(tmp_path / "vlm", temporal_patch_size=4)))
    with pytest.raises(ValueError, match="a temporal patch of 4 frames; 2 are supported"):
        teacher(noise(4, 32, 32))
