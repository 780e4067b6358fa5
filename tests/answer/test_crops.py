"""Crops of large frames: LLaVA-OneVision's counts, tokens where they lie in the frame, and prompts of their length."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from liteframe import StreamSession
from liteframe.answer import crops
from liteframe.answer.crops import CropEncoder, crop_grid, parse_crops, token_grids
from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.reduced_encoder import check_reduction, encoder_with

SIDE = 64  # pixels of a view, of the random students here
VIEW = 4  # tokens a side of it


@pytest.mark.parametrize(
    ("frame", "most", "expected"),
    [
        ((768, 768), 4, (2, 2)),
        ((1536, 1536), 16, (4, 4)),
        ((720, 1280), 8, (2, 4)),
        ((480, 800), 2, (1, 2)),
        ((300, 200), 16, (1, 1)),
        ((2160, 3840), 1, (1, 1)),
    ],
)
def test_crops_are_those_of_the_frame_s_shape(frame, most, expected):
    assert crop_grid(*frame, (384, 384), most) == expected


@pytest.mark.parametrize(
    ("grid", "expected"), [((2, 2), (54, 54)), ((4, 4), (81, 81)), ((6, 6), (81, 81)), ((2, 4), (54, 108))]
)
def test_the_code_s_counts(grid, expected):
    """LLaVA-NeXT's `anyres_max_9` at 27 tokens a side; 9 x 27 x 27 together at most, to a tenth a side."""
    assert token_grids(grid, (27, 27)) == ((27, 27), expected)


def test_a_slot_of_sixteen_crops_has_640_tokens():
    assert token_grids((4, 4), (8, 8)) == ((8, 8), (24, 24))


@pytest.mark.parametrize(("grid", "tokens"), [((1, 1), 729), ((2, 2), 729), ((3, 3), 656.1), ((6, 6), 177.32)])
def test_the_paper_s_counts(grid, tokens):
    """Of each view 9 x 729 / (r c + 1), where that is less than 729; a grid's side is the floor of the root."""
    base, together = token_grids(grid, (27, 27), mode="paper")
    side = int(tokens**0.5)
    assert (base, together) == ((side, side), (grid[0] * side, grid[1] * side))
    assert sum(a * b for a, b in (base, together)) <= 9 * 729


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'papers': choose code or paper"):
        token_grids((2, 2), (8, 8), mode="papers")


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_reduced_as_llava_reduces(mode):
    """Against torch's bilinear interpolation of a picture: views of a plane of coordinates keep their places."""
    rows, columns, side = 3, 4, 6
    plane = torch.stack(torch.meshgrid(torch.arange(18.0), torch.arange(24.0), indexing="ij"), -1)  # [18,24,2]
    views = plane.unflatten(1, (columns, side)).unflatten(0, (rows, side)).permute(0, 2, 1, 3, 4).flatten(0, 1)
    grids = torch.cat([views[:1] * 0 + 7, views])[:, None]  # [13,1,6,6,2]
    base, together = token_grids((rows, columns), (side, side), 4, mode)
    shown, stitched = crops._views(grids, (rows, columns), base, together)
    assert (shown == 7).all()  # what is constant stays so
    assert shown.shape[1] == base[0] * base[1]
    expected = F.interpolate(plane.permute(2, 0, 1)[None].double(), together, mode="bilinear")
    # Views that are made smaller one by one keep their own borders; together they are one picture.
    torch.testing.assert_close(
        stitched,
        expected[0].permute(1, 2, 0).flatten(0, 1)[None].float(),
        atol=0.6 if mode == "paper" else 1e-4,
        rtol=0,
    )
    assert stitched.unflatten(1, together)[0, 0, :, 1].diff().gt(0).all()
    assert stitched.unflatten(1, together)[0, :, 0, 0].diff().gt(0).all()


@pytest.fixture
def large():
    """Nine frames of 2 x 3 views: a clip of 8, and one frame."""
    return np.random.default_rng(1).integers(0, 256, (9, 2 * SIDE, 3 * SIDE, 3), dtype=np.uint8)


def test_each_place_is_encoded_like_a_video_of_its_own(liteframe_vlm, large):
    model, processor = liteframe_vlm
    whole = frame_encoder(model, processor)
    encoder = CropEncoder(whole, most=6)
    resized = encoder.resized(large)
    assert resized.shape == (9, 3, 2 * SIDE, 3 * SIDE)
    assert torch.equal(encoder.resized(resized.permute(0, 2, 3, 1)), resized)  # as sessions hand them on
    view = processor.grid(SIDE, SIDE)
    with torch.inference_mode():
        found = encoder.encode(resized[:8], 0)
        assert [tokens for _, _, tokens in found.slots] == [7 * view[0] * view[1]] * 2
        slots = found.tokens.unflatten(0, (2, -1))  # [S,N,D]
        base = whole.encode(processor.resized(large[:8]), 0).tokens.unflatten(0, (2, -1))
        torch.testing.assert_close(slots[:, : base.shape[1]], base, atol=2e-5, rtol=1e-4)
        stitched = slots[:, base.shape[1] :].unflatten(1, (2 * view[0], 3 * view[1]))
        for row in range(2):
            for column in range(3):
                crop = large[:8, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
                alone = whole.encode(processor.resized(crop), 0).tokens.unflatten(0, (2, *view))
                place = stitched[:, row * view[0] : (row + 1) * view[0], column * view[1] : (column + 1) * view[1]]
                torch.testing.assert_close(place, alone, atol=2e-5, rtol=1e-4)


def test_a_frame_of_one_view_is_seen_as_ever(liteframe_vlm, large):
    whole = frame_encoder(*liteframe_vlm)
    small = whole.resized(large)
    with torch.inference_mode():
        assert torch.equal(CropEncoder(whole, most=1).encode(small, 0).tokens, whole.encode(small, 0).tokens)


@pytest.mark.parametrize("kind", ["liteframe_internvl", "liteframe_llava_onevision"])
def test_prompts_are_as_long_as_their_tokens(loaded, large, kind):
    """A session takes crops as it takes any slots: offline and clip by clip the same, in both families."""
    model, processor = loaded[kind]
    encoder = CropEncoder(frame_encoder(model, processor), most=6, views=4)
    sessions = [StreamSession(model, processor, encoder=encoder, prefill=prefill) for prefill in (False, True)]
    for frames in (large[:8], large[8:]):
        sessions[1].add(frames)
    sessions[0].add(large)
    scores = [session.score("What is it?", ["red", "left"]) for session in sessions]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)
    plain = StreamSession(model, processor)
    plain.add(large)
    assert sessions[0].size().tokens > 3 * plain.size().tokens


def test_tokens_are_found_back_where_their_crop_lies(liteframe_vlm):
    """A frame that is gray but for one crop: only that crop's tokens and the base view's differ from a gray frame's."""
    model, processor = liteframe_vlm
    encoder = CropEncoder(frame_encoder(model, processor), most=6)
    gray = np.full((4, 2 * SIDE, 3 * SIDE, 3), 128, dtype=np.uint8)
    marked = gray.copy()
    marked[:, SIDE:, SIDE : 2 * SIDE] = 250  # row 1, column 1
    view = processor.grid(SIDE, SIDE)
    with torch.inference_mode():
        grids = [encoder.encode(encoder.resized(f), 0).tokens[view[0] * view[1] :] for f in (gray, marked)]
    changed = (grids[0] - grids[1]).abs().amax(-1).unflatten(0, (2 * view[0], 3 * view[1])) > 1e-4
    expected = torch.zeros_like(changed)
    expected[view[0] :, view[1] : 2 * view[1]] = True
    assert torch.equal(changed, expected)


def test_what_the_command_line_says(loaded):
    assert parse_crops("4") == (4, 9)
    encoder = encoder_with(*loaded["liteframe_internvl"], None, None, crops="16:4")
    assert isinstance(encoder, CropEncoder)
    assert (encoder.most, encoder.views) == (16, 4)
    with pytest.raises(ValueError, match="--crops '0:9': write the most crops of a frame"):
        check_reduction(None, None, crops="0:9")
    with pytest.raises(ValueError, match="leave out --reducer"):
        check_reduction("wap", 0.5, crops="4")
    with pytest.raises(ValueError, match="name one with --encoder"):
        encoder_with(*loaded["internvl"], None, None, crops="4")
