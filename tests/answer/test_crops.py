"""Crops of large frames: LLaVA-OneVision's counts, tokens where they lie in the frame, and prompts of their length."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from liteframe import StreamSession
from liteframe.answer import crops
from liteframe.answer.crops import CropEncoder, crop_grid, parse_crops, prompt_grids, scale_to, token_grids
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


def test_views_of_several_images_share_a_budget():
    """LLaVA-OneVision's images of 2 x 2 and of one crop, each with its whole: 5103 tokens of 27 x 27, 3000 are left."""
    scale = scale_to(3000, [5 * 729, 2 * 729])
    assert scale == pytest.approx(0.587889, abs=1e-6)
    assert scale * 729 == pytest.approx(428.571, abs=1e-3)
    assert prompt_grids([((2, 2), 1), ((1, 2), 1)], (27, 27), 8 * 400, mode="paper") == [
        ((20, 20), (40, 40)),
        ((20, 20), (20, 40)),
    ]


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_all_slots_of_a_prompt_are_scaled_alike(mode):
    """Clips of several crop grids, against the shares by hand: never above the total, and a side more would be."""
    clips, view = [((2, 2), 3), ((1, 1), 2), ((4, 4), 1), ((1, 3), 2)], (16, 16)
    total = 4000
    grids = prompt_grids(clips, view, total, mode=mode)
    if mode == "code":  # 4 x 4 crops are 48 x 48 by the budget of a slot; whole frames stay
        left, of = total - 8 * 256, 3 * 32 * 32 + 48 * 48 + 2 * 16 * 48
        side = (left / of) ** 0.5
        rests = [(32, 32), (0, 0), (48, 48), (16, 48)]
        expected = [(view, (int(h * side), int(w * side))) for h, w in rests]
    else:  # views of 4 x 4 crops are 9 / 17 of theirs by the budget of a slot
        left, of = total, 256 * (3 * 5 + 2 * 1 + 9 + 2 * 4)
        sides = [int(16 * (left / of * share) ** 0.5) for share in (1, 1, 9 / 17, 1)]
        expected = [((n, n), (c[0] * n, c[1] * n)) for n, (c, _) in zip(sides, clips, strict=True)]
        expected[1] = (expected[1][0], (0, 0))
    assert grids == expected
    used = sum(n * (a * b + c * d) for ((a, b), (c, d)), (_, n) in zip(grids, clips, strict=True))
    assert 0.8 * total < used <= total
    gray = crops._views(torch.full((5, 1, *view, 1), 7.0), (2, 2), *grids[0])
    assert [part.shape[1] for part in gray] == [a * b for a, b in grids[0]]
    assert all((part - 7).abs().max() < 1e-5 for part in gray)  # what is constant stays so
    alone = [token_grids(grid, view, mode=mode) for grid, _ in clips]
    roomy = prompt_grids(clips, view, 10**6, mode=mode)
    assert [pair for pair, (grid, _) in zip(roomy, clips, strict=True) if grid != (1, 1)] == alone[:1] + alone[2:]
    assert roomy[1] == (view, (0, 0))


def test_crops_or_frames_at_equal_tokens():
    """64 frames whole, or 16 of them in 2 x 2 crops: a total of the one's tokens makes the other's crops smaller."""
    ((base, rest),) = prompt_grids([((2, 2), 4)], (8, 8), 16 * 64)
    assert (base, rest) == ((8, 8), (13, 13))
    assert 4 * (64 + 169) == 932 <= 16 * 64


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_a_total_that_leaves_a_view_nothing_is_refused(mode):
    with pytest.raises(ValueError, match="3 tokens are too few for 4 slots"):
        prompt_grids([((2, 2), 4)], (8, 8), 3, mode=mode)


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


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("kind", ["liteframe_internvl", "liteframe_llava_onevision"])
def test_a_prompt_holds_the_total_and_no_more(loaded, large, kind, mode):
    """Two clips of other crops: as many placeholders as the formula says, and what a session shows of one alone."""
    model, processor = loaded[kind]
    encoder = CropEncoder(frame_encoder(model, processor), most=6, mode=mode, total=(total := 240))
    end = int(encoder.end_embedding() is not None)
    clips = [encoder.pixels(encoder.resized(frames)) for frames in (large, large[:2, :SIDE, :SIDE])]
    crops = crop_grid(2 * SIDE, 3 * SIDE, encoder.size, 6)
    assert crops > (1, 1)
    grids = prompt_grids([(crops, 3), ((1, 1), 1)], processor.grid(*encoder.size), total - 2 * end, mode=mode)
    with torch.inference_mode():
        shown = encoder.prompt(clips)
    for tokens, (base, rest), slots in zip(shown, grids, (3, 1), strict=True):
        text = encoder.video_text(tokens.slots)
        placeholders = processor.tokenizer(text)["input_ids"].count(encoder.placeholder_id)
        count = slots * (base[0] * base[1] + rest[0] * rest[1])
        assert len(tokens.tokens) == count
        assert placeholders == count + end
    session = StreamSession(model, processor, encoder=encoder)
    session.add(large[:5])
    session.add(large[5:])
    session.score("What is it?", ["red", "left"])
    assert session.tokens_per_frame * 9 == len(encoder.prompt(clips[:1])[0].tokens)
    with pytest.raises(ValueError, match="240 tokens are of a whole video, not of what comes after 8 frames of it"):
        encoder.tokens(clips[1], 8)


def test_a_prompt_without_a_total_is_refused(liteframe_vlm):
    with pytest.raises(ValueError, match="give CropEncoder a total"):
        CropEncoder(frame_encoder(*liteframe_vlm), most=6).prompt([])


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
    assert parse_crops("4") == (4, 9, None)
    encoder = encoder_with(*loaded["liteframe_internvl"], None, None, crops="16:4:512")
    assert isinstance(encoder, CropEncoder)
    assert (encoder.most, encoder.views, encoder.total) == (16, 4, 512)
    with pytest.raises(ValueError, match="--crops '0:9': write the most crops of a frame"):
        check_reduction(None, None, crops="0:9")
    with pytest.raises(ValueError, match="leave out --reducer"):
        check_reduction("wap", 0.5, crops="4")
    with pytest.raises(ValueError, match="name one with --encoder"):
        encoder_with(*loaded["internvl"], None, None, crops="4")
