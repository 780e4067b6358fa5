"""Summary tokens: one pass with a mask against reading and forgetting, who sees whom, the authors' numbers by hand."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from worlds.lma import Adapted
from worlds.vlms import with_summary_tokens

from liteframe import StreamSession, load_video_llm, memories
from liteframe.align.batch import collate_samples
from liteframe.align.dataset import LoadedMedia, Sample
from liteframe.align.objectives import summary as objective
from liteframe.align.objectives.summary import SummaryTuning
from liteframe.answer.key_values import LABEL, PROTOTYPE, TEXT, VIDEO, KeyValues
from liteframe.answer.positions import Compact, Keep
from liteframe.models.vlm.attention import FULL
from liteframe.models.vlm.chat import IGNORE, Turn, encode_conversation
from liteframe.models.vlm.one_pass import (
    SUMMARY,
    Layout,
    Segment,
    block_mask,
    dense_mask,
    lay_out,
    rearranged,
    summarized,
    visibility,
)  # fmt: skip
from liteframe.models.vlm.summary_tokens import SummarySettings, summary_tokens_of
from liteframe.reduce.segmenter import Segmenter

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]


def one_pass(pair, settings, frames, **changed):
    """Log-probabilities of WORDS as the first of an answer, by the objective of training."""
    model, processor = pair
    turns = [Turn("user", f"<video>\n{QUESTION}"), Turn("assistant", "red")]
    text = processor.video_text(processor.slots(len(frames), *processor.frame_size))
    ids, labels = encode_conversation(turns, [text], processor.tokenizer)
    medium = LoadedMedia(torch.empty(0), ("a", tuple(range(len(frames)))), None)
    batch = collate_samples([Sample(ids, labels, [medium], (0, 0))], 0, processor.image_token_id)
    with torch.no_grad():
        features = model.model.get_video_features(processor.pixels(frames), [len(frames)])
        for place, value in changed.items():
            features.pooler_output[0][int(place[1:])] += value
        inputs = {"mm_encoder_outputs": {"video": features}}
        _, logits = SummaryTuning(settings, processor).loss(Adapted(model), inputs, batch)
    summary_tokens_of(model).places = None
    return logits[0, 0].log_softmax(-1)[processor.tokenizer.convert_tokens_to_ids(WORDS)]


@pytest.mark.parametrize(
    ("family", "frames", "settings"),
    [
        ("internvl", 27, {"segments": 2, "ratios": [[2]]}),  # the seventh slot is a segment that goes on
        ("internvl", 24, {"segments": 3, "ratios": [[8]], "labels": "drop"}),
        ("internvl", 27, {"segments": "changes", "ratios": "dynamic"}),
        ("llava_onevision", 27, {"segments": 2, "ratios": [[8]]}),  # 25 tokens a slot: a last one for what is left
        ("llava_onevision", 24, {"segments": 3, "ratios": [[4]], "labels": "drop"}),
    ],
)
def test_one_pass_is_reading_and_forgetting(loaded, video, monkeypatch, family, frames, settings):
    pair = with_summary_tokens(loaded[f"liteframe_{family}"], **settings)
    if settings["segments"] == "changes":
        video = np.repeat(video[:3], (8, 8, 11), 0)  # three scenes
    session = StreamSession(*pair, memories["summary"](4096))
    for start in range(0, frames, 5):
        session.add(video[start : min(start + 5, frames)])
    streamed = session.score(QUESTION, WORDS)
    shown = session._shown(QUESTION)
    assert shown.count(PROTOTYPE) >= 2
    monkeypatch.setattr(objective, "RAW_END", 1.0 if shown.count(VIDEO) else 0.0)
    trained = one_pass(pair, SummarySettings(**settings), video[:frames])
    torch.testing.assert_close(trained, streamed, atol=1e-5, rtol=1e-5)
    plain = StreamSession(*loaded[f"liteframe_{family}"])
    plain.add(video[:frames])
    assert not torch.allclose(plain.score(QUESTION, WORDS), streamed, atol=1e-3)


def test_what_is_held_by_number(loaded, video):
    pair = with_summary_tokens(loaded["liteframe_internvl"])
    session = StreamSession(*pair, memories["summary"](30, segments=2, ratio=4))
    reader = session.memory.reader
    text = len(reader.ids(reader.head))
    session.add(video[:24])  # 6 slots of 4 tokens: three segments
    past = session.memory.context(QUESTION)
    assert past.count(TEXT) == text
    assert (past.count(PROTOTYPE), past.count(VIDEO)) == (6, 0)
    assert len(past) == text + 6 + past.count(LABEL)
    assert past.next == text + past.count(LABEL) + 24 + 6  # what is forgotten has had its positions
    session.add(video[:4])
    session.add(video[:4])
    assert session.size().tokens == 8
    for _ in range(5):
        session.add(video[:24])
        assert session.size().tokens <= 30
    held = session.memory.context(QUESTION)
    assert held.count(PROTOTYPE) > 20
    assert held.slot[held.kind == PROTOTYPE].min() > 0  # the oldest slots are forgotten, labels and all
    assert held.slot[held.kind == LABEL].min() == held.slot[held.kind == PROTOTYPE].min()


def test_a_forgotten_token_reaches_the_answer_through_summary_tokens_only(loaded, video, monkeypatch):
    settings = {"segments": 2, "ratios": [[2]]}
    pair = with_summary_tokens(loaded["liteframe_internvl"], **settings)
    monkeypatch.setattr(objective, "RAW_END", 1.0)
    whole = one_pass(pair, SummarySettings(**settings), video)
    changed = {f"f{place}": 3.0 for place in range(8)}  # all of the first segment
    assert not torch.allclose(one_pass(pair, SummarySettings(**settings), video, **changed), whole, atol=1e-3)

    def blind(rows):  # to all of their segments
        layout = lay_out(rows)
        return layout._replace(segment=torch.where(layout.source == SUMMARY, -1, layout.segment))

    monkeypatch.setattr(objective, "lay_out", blind)
    whole = one_pass(pair, SummarySettings(**settings), video)
    assert torch.equal(one_pass(pair, SummarySettings(**settings), video, **changed), whole)


def test_without_an_update_the_plain_model_is_left(loaded, video, monkeypatch):
    """All logits where nothing is summarized; else those before the first summary token, and not those behind it."""
    plain, processor = loaded["liteframe_internvl"]
    session = StreamSession(plain, processor)
    session.add(video)
    untrained = with_summary_tokens((plain, processor))
    for update in summary_tokens_of(untrained[0]).updates.parameters():
        update.zero_()
    monkeypatch.setattr(objective, "RAW_END", 1.0)
    nothing = SummarySettings(segments=16)
    scores = session.score(QUESTION, WORDS)
    torch.testing.assert_close(one_pass(untrained, nothing, video), scores, atol=1e-5, rtol=1e-5)
    embeddings = 0.3 * torch.randn(1, 20, plain.config.text_config.hidden_size)
    layout = lay_out([(20, [Segment(range(4, 12), [], 4)])])
    hidden, expected = (
        model.model.language_model(inputs_embeds=rows, attention_mask=mask).last_hidden_state[0].detach()
        for model, rows, mask in (
            (untrained[0], rearranged(embeddings, torch.ones(embeddings.shape[-1]), layout.source),
             {FULL: dense_mask(layout)}),
            (plain, embeddings, None),
        )
    )  # fmt: skip
    torch.testing.assert_close(hidden[:8], expected[:8], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(hidden[13], expected[12], atol=1e-3)


def drawn(layout):
    """x for what is read once, V for a summary token, . for what stays."""
    marks = {(SUMMARY, True): "V", (0, False): "x", (0, True): "."}
    return "".join(marks[min(int(s), 0), bool(k)] for s, k in zip(layout.source[0], layout.kept[0], strict=True))


def test_layouts_by_hand():
    assert drawn(lay_out([(8, [Segment(range(8), [], 4)])])) == "xxxxVxxxxV"
    assert drawn(lay_out([(6, [Segment(range(6), [], 4)])])) == "xxxxVxxV"
    label = lay_out([(9, [Segment([1, 2, 4, 5], [3], 8), Segment([7], [], 2)])])
    assert drawn(label) == ".xxxxxV.xV."
    assert label.segment.tolist() == [[-1, 0, 0, 0, 0, 0, 0, -1, 1, 1, -1]]
    assert (label.rows.tolist(), label.columns.tolist()) == ([0, 0], [6, 9])
    labels = rearranged(torch.arange(9)[None], torch.tensor(IGNORE), label.source)
    assert labels[0, label.columns].tolist() == [IGNORE, IGNORE]
    # Video-XL: windows of 1440 tokens, one summary of 8.
    assert [count * len(summarized(1440, 8)) for count in (1, 2, 10, 205)] == [180, 360, 1800, 36900]
    # Who sees whom: a row of one kept token, two segments of 2 and what follows, against the rule by a loop.
    layout = lay_out([(6, [Segment([1, 2], [], 2), Segment([3, 4], [], 2)]), (3, [])])
    mask = dense_mask(layout)[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 1, 0, 0],
        [1, 0, 0, 1, 1, 1, 1, 0],
        [1, 0, 0, 1, 0, 0, 1, 1],
    ]
    assert dense_mask(layout)[1, 0, :3].int().tolist() == [[1] + 7 * [0], [1, 1] + 6 * [0], [1, 1, 1] + 5 * [0]]


def test_the_mask_of_flex_attention_is_the_dense_one():
    torch.manual_seed(0)
    layout = lay_out([(40, [Segment(range(4, 20), [], 4), Segment(range(22, 30), [30], 8)]), (33, [])])
    length = layout.source.shape[1]
    query, key, value = torch.randn(3, 2, 2, length, 16)
    flexible = flex_attention(query, key, value, block_mask=block_mask(layout))
    dense = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=dense_mask(layout))
    torch.testing.assert_close(flexible, dense, atol=1e-5, rtol=1e-5)
    assert visibility(layout)(0, 0, torch.tensor(5), torch.tensor(5))


def test_positions_that_close_up_after_every_segment(loaded):
    """Video-XL: sink 2, memory 3, a window of 8 with a summary after every 4; its next window starts at 7."""
    model, _ = loaded["liteframe_internvl"]
    torch.manual_seed(0)
    embeddings = 0.3 * torch.randn(1, 16, model.config.text_config.hidden_size)
    past = KeyValues(model, Compact(at=0))
    with torch.inference_mode():
        past.read(embeddings[:, :5], torch.tensor([TEXT] * 2 + [PROTOTYPE] * 3))
        kinds = torch.tensor([VIDEO, VIDEO, VIDEO, VIDEO, PROTOTYPE] * 2)
        past.read(embeddings[:, 5:15], kinds, sees=torch.ones(10, 10, dtype=torch.bool).tril())
        assert past.positions[0, past.kind[0] == VIDEO].tolist() == [5, 6, 7, 8, 10, 11, 12, 13]
        assert past.positions[0, past.kind[0] == PROTOTYPE][3:].tolist() == [9, 14]
        past.keep((past.kind[0] != VIDEO).nonzero()[:, 0])
        past.read(embeddings[:, 15:], torch.tensor([VIDEO]))
    assert past.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_segments_and_their_ratios():
    def cut(segmenter, globs):
        return [ended for glob in globs if (ended := segmenter.add(torch.tensor(glob))) is not None]

    one, other, near = (1.0, 0.0), (0.0, 1.0), (1.0, 0.3)
    assert cut(Segmenter(3, 4), [one] * 7) == [(3, 4), (3, 4)]
    segmenter = Segmenter(2, "dynamic")
    # Nothing to compare with; as before; far more; hardly any.
    assert cut(segmenter, [one, near, one, near, one, other, one, one]) == [(2, 8), (2, 8), (2, 4), (2, 16)]
    assert cut(segmenter, [one]) == []
    copy = segmenter.fork()
    assert segmenter.rest() == (1, 8)
    assert copy.rest() == (1, 8)
    assert cut(Segmenter("changes", 8), [one] * 40) == [(16, 8), (16, 8)]
    scenes = [one] * 4 + [near] * 4 + [other] * 5 + [one] * 4
    assert [slots for slots, _ in cut(Segmenter("changes", 8), scenes)] == [4, 4, 5]
    draws = iter([2, 4, 8])
    assert cut(Segmenter(1, lambda: next(draws)), [one] * 3) == [(1, 2), (1, 4), (1, 8)]


def test_ratios_come_in_parts_of_the_run(loaded):
    _, processor = loaded["liteframe_internvl"]
    tuning = SummaryTuning(SummarySettings(), processor)
    torch.manual_seed(0)

    def at(progress):
        tuning.progress = progress
        return {tuning._draw() for _ in range(20)}

    assert [at(progress) for progress in (0, 0.3, 0.34, 0.66, 0.67, 1)] == [{2, 4}, {2, 4}, {8}, {8}, {16}, {16}]


def test_what_cannot_be_is_named(loaded, trained):
    model, processor = trained["summary"]["liteframe_internvl"]
    with pytest.raises(ValueError, match="segments=17: a segment has 1 to 16 slots"):
        memories["summary"](4096, segments=17)
    with pytest.raises(ValueError, match="ratio=0: a summary token stands for 1 token at least"):
        memories["summary"](4096, ratio=0)
    with pytest.raises(ValueError, match=r"below 8 slots of 4.*and their summaries; give at least 34"):
        StreamSession(model, processor, memories["summary"](33))
    with pytest.raises(ValueError, match="memory 'summary' reads with an adapter's summary tokens, which this model"):
        StreamSession(*loaded["liteframe_internvl"], memories["summary"](4096))
    with pytest.raises(ValueError, match="was trained for memory 'summary', not for 'window'"):
        StreamSession(model, processor, memories["window"](4096))
    with pytest.raises(ValueError, match="memory 'summary' needs an adapter that was trained for it"):
        load_video_llm("toyworld", memory="summary")
    for settings in ({"rank": 0}, {"ratios": []}, {"ratios": [[4], []]}, {"ratios": [[0]]}):
        with pytest.raises(ValueError, match=r"model\.summary: rank >= 1 and ratios of at least 1"):
            SummarySettings(**settings)
    rows = torch.zeros(1, 8193, dtype=torch.long)
    with pytest.raises(ValueError, match="8,193 tokens with their summary tokens are more than a mask of all pairs"):
        dense_mask(Layout(rows, rows, rows.bool(), rows[0], rows[0]))
    session = StreamSession(model, processor, memories["summary"](4096))
    assert (session.memory.segments, session.memory.ratio, session.positions) == (8, 16, Keep())
