"""Reduced videos of both families against the pooled teacher's own road, whole prompts and hand-made choices."""

import json
from dataclasses import dataclass

import pytest
import torch
from typing_extensions import override
from worlds import ROOT

from liteframe import StreamSession, reducers
from liteframe.answer.frame_encoder import frame_encoder
from liteframe.answer.labels import VideoLines
from liteframe.answer.positions import Original, original_positions
from liteframe.answer.prefill import whole_prompt
from liteframe.answer.reduced_encoder import ReducedEncoder, encoder_with
from liteframe.cli.main import main
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.load import load_video_llm
from liteframe.reduce.base import Tokens
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher
from liteframe.reduce.reducer import Reducer

TOY = ROOT / "liteframe/toyworld/checkpoint"
QUESTION = "What colour is the circle?"
WORDS = ["red", "left", "circle", "square"]


@dataclass(frozen=True)
class Some(Reducer):
    """Of every second frame, the first `budget` over half the frames, in raster order."""

    @override
    def reduce(self, signals, budget):
        keep = torch.zeros(signals.tokens.shape[:2], dtype=torch.bool)
        keep[::2, : budget // len(keep[::2])] = True
        return Tokens.kept(signals, keep)


def session_with(model, processor, reducer, ratio, frames, **settings):
    encoder = ReducedEncoder(frame_encoder(model, processor), reducer, ratio)
    session = StreamSession(model, processor, encoder=encoder, **settings)
    session.add(frames)
    return session


def test_wap_is_the_pooled_teacher_of_the_paper(video):
    """The teacher with WAP in place of an encoder, which the demo and `bench latency` have, gives the same."""
    vlm, processor = load_video_llm(TOY)
    (side,) = {*vlm.config.vision_config.image_size}
    config = LiteFrameConfig(
        image_size=side, patch_size=8, teacher_dim=vlm.config.vision_config.hidden_size, dim=64, depth=2, heads=2,
        downsample={1: (4, 2, 2)}, clip_frames=8, resize="squash",
        image_mean=tuple(processor.video_processor.image_mean), image_std=tuple(processor.video_processor.image_std),
    )  # fmt: skip
    pooled = attach_encoder(vlm, PooledEncoder(PooledTeacher(load_teacher(str(TOY)))), config=config).eval()
    before = StreamSession(pooled, processor_for(processor, pooled.config))
    before.add(video)
    ours = session_with(vlm, processor, reducers["wap"], 1 / 16, video)
    torch.testing.assert_close(ours.score(QUESTION, WORDS), before.score(QUESTION, WORDS), atol=1e-4, rtol=1e-4)
    answer = ours.ask(QUESTION)
    assert (answer.text, answer.frames) == (before.ask(QUESTION).text, 27)
    assert answer.tokens == 7 * 4 == before.ask(QUESTION).tokens
    assert not torch.allclose(
        session_with(vlm, processor, reducers["average"], 1 / 16, video).score(QUESTION, WORDS),
        before.score(QUESTION, WORDS),
        atol=1e-3,
    )


@pytest.mark.parametrize("prefill", [False, True])
def test_a_reducer_that_keeps_all_changes_nothing(vlm, video, prefill):
    model, processor = vlm
    plain = StreamSession(model, processor, prefill=prefill)
    plain.add(video)
    session = session_with(model, processor, Some(), 1.0, video, prefill=prefill)
    torch.testing.assert_close(session.score(QUESTION, WORDS), plain.score(QUESTION, WORDS), atol=1e-4, rtol=1e-4)
    assert session.ask(QUESTION) == plain.ask(QUESTION)


def test_what_is_left_stands_in_lines_of_its_own_frames(loaded, video):
    model, processor = loaded["internvl"]
    session = session_with(model, processor, Some(), 0.5, video[:5])
    shown = session._shown(QUESTION)
    count = shown.slots[0][2]
    assert [slot[:2] for slot in shown.slots] == [(0, 0), (2, 2), (4, 4)]
    text = session._encoder.video_text(shown.slots)
    marks = f"<img>{'<IMG_CONTEXT>' * count}</img>"
    assert text == f"Frame1: {marks}\nFrame3: {marks}\nFrame5: {marks}"
    assert session._encoder.video_text([(0, 3, 1), (4, 4, 0), (5, 5, 1)]) == (
        "Frame1-4: <img><IMG_CONTEXT></img>\nFrame6: <img><IMG_CONTEXT></img>"
    )
    whole = frame_encoder(model, processor)
    every = whole.encode(whole.resized(video[:5]), 0)
    expected = every.tokens.unflatten(0, (5, -1))[::2, :count].flatten(0, 1)
    torch.testing.assert_close(shown.tokens, expected)


def test_a_students_slots_are_a_reducers_frames(loaded, video):
    """A student gives 2 x 2 tokens for 4 frames; of 27 frames there are 7 such slots."""
    model, processor = loaded["liteframe_internvl"]
    session = session_with(model, processor, Some(), 0.5, video)
    shown = session._shown(QUESTION)
    assert shown.slots == [(0, 3, 3), (8, 11, 3), (16, 19, 3), (24, 26, 3)]
    assert shown.frame.tolist() == [0] * 3 + [8] * 3 + [16] * 3 + [24] * 3
    plain = StreamSession(model, processor)
    plain.add(video)
    every = plain._shown(QUESTION).tokens.unflatten(0, (7, 4))
    torch.testing.assert_close(shown.tokens, every[::2, :3].flatten(0, 1))
    assert session._encoder.video_text(shown.slots).startswith("Frame1-4: <img><IMG_CONTEXT><IMG_CONTEXT>")


def test_what_a_tower_lacks_is_named(loaded, video):
    @dataclass(frozen=True)
    class Needy(Some):
        needs = frozenset({"glob"})

    model, processor = loaded["liteframe_internvl"]
    with pytest.raises(ValueError, match="goes by glob, which this vision tower does not give"):
        session_with(model, processor, Needy(), 0.5, video).ask(QUESTION)
    with pytest.raises(ValueError, match="leaves none of 28 tokens"):
        session_with(model, processor, Some(), 0.01, video).ask(QUESTION)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--reducer", "wap"], "--reducer and --ratio go together"),
        (["--ratio", "0.5"], "--reducer and --ratio go together"),
        (["--reducer", "fastest", "--ratio", "0.5"], "--reducer 'fastest' is unknown; known: average, max"),
        (["--reducer", "wap", "--ratio", "16"], "--ratio 16: the share of tokens that is left lies above 0"),
    ],
)
def test_refusals(more, message, tmp_path, capsys):
    (tmp_path / "q.jsonl").write_text(json.dumps({"video": "v.mp4", "question": "What?", "answer": "red"}))
    asked = ["ask", "v.mp4", "What?", "--vlm", str(TOY), *more]
    evaluated = ["eval", str(tmp_path / "q.jsonl"), "--vlm", str(TOY), "-o", str(tmp_path / "run"), *more]
    for command in (asked, evaluated):
        assert main(command) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="go together"):
        encoder_with(None, None, "wap", None)


def test_positions_in_the_whole_prompt_by_hand():
    # H, line 1 of 3 tokens, line 2, line 3, tail; 0 stands for a feature.
    whole = [9, 1, 5, 0, 0, 0, 6, 2, 5, 0, 0, 0, 6, 3, 5, 0, 0, 0, 6, 8]
    assert original_positions([9, 1, 5, 0, 0, 6, 8], whole, 0, [0, 2]) == [0, 1, 2, 3, 5, 6, 19]
    assert original_positions([9, 1, 5, 0, 6, 3, 5, 0, 6, 8], whole, 0, [1, 6]) == [0, 1, 2, 4, 6, 13, 14, 15, 18, 19]
    assert original_positions([9, 2, 5, 0, 0, 6, 8], whole, 0, [5, 3]) == [0, 7, 8, 11, 9, 12, 19]
    assert original_positions(whole, whole, 0, list(range(9))) == list(range(20))
    with pytest.raises(ValueError, match="is not that of the whole one"):
        original_positions([9, 4, 5, 0, 6, 8], whole, 0, [0])


@pytest.mark.parametrize("family", ["internvl", "llava_onevision"])
@pytest.mark.parametrize("every", [1, 2])
def test_original_positions_are_those_of_the_whole_prompt_with_the_rest_masked(family, every, video, loaded):
    """With the features of all frames in the prompt, and attention to what is left alone, the model says the same."""

    class Left(Reducer):
        def reduce(self, signals, budget):
            keep = torch.zeros(signals.tokens.shape[:2], dtype=torch.bool)
            keep[::every, 1::3] = True
            return Tokens.kept(signals, keep)

    model, processor = loaded[family]
    frames = video[:5]
    packed, ours = (
        session_with(model, processor, Left(), 0.3, frames, **how) for how in ({}, {"positions": Original()})
    )
    request, _ = ours._request(QUESTION, 4)
    (places,) = request["position_ids"].tolist()
    encoder = frame_encoder(model, processor)
    shown = encoder.whole(encoder.pixels(encoder.resized(frames)))
    lines = VideoLines(encoder, processor.tokenizer, "frames")
    whole = whole_prompt(model, processor.tokenizer, lines, shown, QUESTION)
    ids, embeddings = whole.ids, whole.embeddings
    mask = torch.zeros(1, ids.shape[1], dtype=torch.long)
    mask[0, places] = 1
    assert mask.sum() == len(places) < ids.shape[1]
    with torch.no_grad():
        hidden = model.model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=torch.arange(ids.shape[1])[None]
        ).last_hidden_state[:, -1]
        expected = model.lm_head(hidden)[0].log_softmax(-1)
    words = [processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in WORDS]
    torch.testing.assert_close(ours.score(QUESTION, WORDS), expected[words], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(packed.score(QUESTION, WORDS), expected[words], atol=1e-4)
    assert ours.ask(QUESTION, max_new_tokens=4).text == "".join(ours.stream(QUESTION, max_new_tokens=4))


@pytest.mark.parametrize(
    ("reducer", "message"), [("wap", "tokens of several frames, or without a place"), (None, "nothing was reduced")]
)
def test_original_positions_need_tokens_of_one_frame(reducer, message, video):
    model, processor = load_video_llm(TOY)
    how = {"positions": Original()}
    if reducer is None:
        session = StreamSession(model, processor, **how)
        session.add(video[:5])
    else:
        session = session_with(model, processor, reducers[reducer], 1 / 16, video[:5], **how)
    with pytest.raises(ValueError, match=message):
        session.ask(QUESTION)
