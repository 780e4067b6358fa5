"""Caches whose entries are kept by score: numbers by hand, and one pass with a mask."""

import math

import pytest
import torch

from liteframe import StreamSession, memories
from liteframe.answer.key_values import LABEL, PROTOTYPE, TEXT, VIDEO, KeyValues
from liteframe.answer.memory.saliency import best, change_of_keys, saliency
from liteframe.answer.positions import Keep
from liteframe.models.vlm.chat import question_prompt

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]
KEYS = torch.tensor([[1, 0], [0, 1], [1, 1], [2, 0], [0, 2], [0.5, 0.5]])
QUERIES = torch.tensor([[1.0, 0], [1, 1]])


def near(values, expected):
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=1e-3)


def test_saliency_by_hand():
    everything = torch.ones(6, dtype=torch.bool)
    near(saliency(QUERIES[None, :1], KEYS[None], everything), [0.1749, 0.0863, 0.1749, 0.3548, 0.0863, 0.1228])
    near(saliency(QUERIES[None, 1:], KEYS[None], everything), [0.1101, 0.1101, 0.2233, 0.2233, 0.2233, 0.1101])
    found = saliency(QUERIES[None], KEYS[None], everything)
    near(found, [0.1425, 0.0982, 0.1991, 0.2890, 0.1548, 0.1165])
    some = torch.tensor([True, True, False, False, False, False])
    ratio = math.exp(1 / 2**0.5)
    near(saliency(QUERIES[None, :1], KEYS[None], some)[:2], [ratio / (1 + ratio), 1 / (1 + ratio)])
    # budget 4, the last two are of a new slot and one of them becomes its prototype: three of the rest
    assert best(found, 3).tolist() == [2, 3, 4]
    assert best(torch.tensor([0.2, 0.3, 0.2, 0.2]), 2).tolist() == [1, 3]


def test_change_of_keys_by_hand():
    keys = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [0, 1], [1, 0], [1, 0]]])
    slot, place = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 0, 1])
    scores = change_of_keys(keys, slot, place)
    near(scores[:4], [-1, 0, -0.7071, 0])
    assert scores[4:].tolist() == [math.inf] * 2


def test_prototypes_by_hand(liteframe_vlm):
    model, _ = liteframe_vlm
    past = KeyValues(model, Keep())
    layers = model.config.text_config.num_hidden_layers
    numbers = torch.arange(6.0)
    values = torch.stack([2 * numbers, 2 * numbers + 1], 1)
    for layer in range(layers):
        past.cache.update(KEYS[None, None], values[None, None], layer)
    rows = torch.arange(6).expand(layers, -1)
    past.positions = past.made_at = rows + 10
    past.slot, past.kind, past.place = rows // 2, torch.full_like(rows, VIDEO), rows % 2
    attention = torch.tensor([0.1425, 0.0982, 0.1991, 0.2890, 0.1548, 0.1165]).expand(layers, -1)
    keys, means, positions, slot, _ = memories["saliency"](4)._prototypes(past, attention, range(3))
    near(keys[0, 0], [[0.5921, 0.4079], [1.5921, 0.4079], [0.2147, 1.3559]])
    near(means[0, 0], [[0.8158, 1.8158], [5.1842, 6.1842], [8.8588, 9.8588]])
    assert positions[0].tolist() == [10, 12, 14]
    assert slot[0].tolist() == [0, 1, 2]
    plain, *_ = memories["saliency"](4, merge="mean")._prototypes(past, torch.zeros(layers, 6), range(1))
    near(plain[0, 0], [[0.5, 0.5]])
    past.insert(keys[:, :, 1:], means[:, :, 1:], positions[:, 1:], slot[:, 1:])
    assert past.positions[0].tolist() == [10, 11, 12, 12, 13, 14, 14, 15]
    assert past.kind[0].tolist() == [VIDEO, VIDEO, PROTOTYPE, VIDEO, VIDEO, PROTOTYPE, VIDEO, VIDEO]
    near(past.cache.layers[1].keys[0, 0, 2], [1.5921, 0.4079])


@pytest.mark.parametrize("score", ["attention", "tar+van", "mix"])
@pytest.mark.parametrize("merge", ["weighted", "none"])
def test_every_layer_keeps_as_many(liteframe_vlm, video, score, merge):
    session = StreamSession(*liteframe_vlm, memories["saliency"](14, score=score, merge=merge, threshold=None))
    for start in range(0, 24, 8):
        session.add(video[start : start + 8])
    past = session.memory.context(QUESTION)
    for layer in range(len(past.positions)):
        kinds = past.kind[layer].tolist()
        assert kinds.count(VIDEO) + kinds.count(PROTOTYPE) == 14 == session.size().tokens
        assert kinds.count(PROTOTYPE) >= (0 if merge == "none" else 2)
        own = past.positions[layer][past.kind[layer] != PROTOTYPE]
        assert (own.diff() > 0).all()
    labels = past.slot[0][past.kind[0] == LABEL].unique().tolist()
    assert labels == [2, 3, 4, 5]
    assert past.count(TEXT) == 3
    assert len(past.cache.layers[0].keys[0, 0]) == len(past)


def test_attention_chooses_other_entries_in_other_layers(liteframe_vlm, video):
    session = StreamSession(*liteframe_vlm, memories["saliency"](10, threshold=None))
    session.add(video[:24])
    positions = session.memory.context(QUESTION).positions
    assert any(not torch.equal(positions[0], other) for other in positions[1:])
    shared = StreamSession(*liteframe_vlm, memories["saliency"](10, threshold=None, share=True))
    shared.add(video[:24])
    positions = shared.memory.context(QUESTION).positions
    assert all(torch.equal(positions[0], other) for other in positions[1:])


def test_one_choice_for_all_layers_is_one_pass_with_a_mask(liteframe_vlm, video):
    """Row i sees what was held when i was read."""
    model, processor = liteframe_vlm
    session = StreamSession(model, processor, memories["saliency"](10, threshold=None, share=True, merge="none"))
    held = []
    for start in range(0, 24, 8):
        session.add(video[start : start + 8])
        past = session.memory.context(QUESTION)
        held.append((past.next, past.positions[0]))
    inputs = processor(text=question_prompt(QUESTION), videos=[video[:24]], return_tensors="pt")
    ids = inputs["input_ids"][0]
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for read, positions in held:
        gone = torch.ones(len(ids), dtype=torch.bool)
        gone[positions] = False
        gone[read:] = False
        seen[read:, gone] = False
    blocked = torch.full(seen.shape, torch.finfo(torch.float32).min).masked_fill(seen, 0.0)
    with torch.inference_mode():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
        embeddings = model.get_input_embeddings()(ids[None])
        embeddings[0, ids == processor.image_token_id] = features
        inputs = {"inputs_embeds": embeddings, "attention_mask": blocked[None, None]}
        logits = model.lm_head(model.model.language_model(**inputs).last_hidden_state)[0, -1].log_softmax(-1)
    expected = logits[processor.tokenizer.convert_tokens_to_ids(WORDS)]
    torch.testing.assert_close(session.score(QUESTION, WORDS), expected, atol=1e-4, rtol=1e-4)


def test_a_filtered_stream_is_read_as_its_runs(liteframe_vlm, video):
    still = video.copy()
    still[:8] = still[0]
    whole = StreamSession(*liteframe_vlm)
    whole.add(still[:16])
    globs = whole._shown(QUESTION).tokens.unflatten(0, (4, 4)).mean(1)
    same, other = torch.cosine_similarity(globs[::2], globs[1::2]).tolist()
    assert same > other
    session = StreamSession(*liteframe_vlm, memories["saliency"](64, threshold=(same + other) / 2))
    session.add(still[:16])
    past = session.memory.context(QUESTION)
    assert past.slot[0][past.kind[0] == VIDEO].unique().tolist() == [0, 2, 3]


def test_a_budget_below_a_prototype_a_slot_is_refused():
    with pytest.raises(ValueError, match="below one for each of the 4 slots of a clip and one more; give at least 5"):
        memories["saliency"](4).check(4, 4)


def test_a_budget_below_a_clip_leaves_the_memory_as_it_was(liteframe_vlm, video):
    with pytest.raises(ValueError, match="expected one of attention"):
        memories["saliency"](8, score="best")
    with pytest.raises(ValueError, match="expected one of weighted, mean, none"):
        memories["saliency"](8, merge="yes")
    with pytest.raises(ValueError, match="below one slot of this model, which has 4"):
        StreamSession(*liteframe_vlm, memories["saliency"](3, threshold=None))
    session = StreamSession(*liteframe_vlm, memories["saliency"](4, threshold=None))
    session.memory.budget = 2
    with pytest.raises(ValueError, match="give at least"):
        session.add(video[:16])
    assert (session.frames, session.size().bytes) == (0, 0)


def test_two_levels_count_and_come_down_to_one(liteframe_vlm, video):
    options = {"slots_per_block": 1, "chosen": 1}
    session = StreamSession(*liteframe_vlm, memories["bilevel"](64, pool=2, **options))
    session.add(video[:24])
    past, view = session.memory._past, session._shown(QUESTION)
    assert view.count(VIDEO) == 3 * 4  # the first block, the last and one between
    assert view.count(PROTOTYPE) == 3 * 2
    assert view.count(LABEL, TEXT) == past.count(LABEL, TEXT)
    assert len(view) == view.count(VIDEO, PROTOTYPE, LABEL, TEXT)
    assert past.count(VIDEO) == 24
    whole = StreamSession(*liteframe_vlm, memories["sink_window"](64))
    whole.add(video[:24])
    expected = whole.score(QUESTION, WORDS)
    assert not torch.allclose(session.score(QUESTION, WORDS), expected, atol=1e-3)
    for settings in ({"pool": 1, **options}, {"pool": 2, "slots_per_block": 1, "chosen": 4}):
        same = StreamSession(*liteframe_vlm, memories["bilevel"](64, **settings))
        same.add(video[:24])
        assert torch.equal(same.score(QUESTION, WORDS), expected)
    with pytest.raises(ValueError, match="pool=0"):
        memories["bilevel"](64, pool=0)


def test_a_mean_of_keys_is_that_of_unrotated_ones(liteframe_vlm):
    """Tokens that are equal before rotation have themselves as their mean, wherever they stand."""
    session = StreamSession(*liteframe_vlm, memories["bilevel"](64, pool=4, slots_per_block=1, chosen=1))
    still = torch.zeros(24, 64, 64, 3, dtype=torch.uint8).numpy()
    session.add(still)
    past, view = session.memory._past, session._shown(QUESTION)
    merged = (view.kind[0] == PROTOTYPE).nonzero()[:, 0]
    bare = view.keys(0)[:, merged]  # of the first layer, where keys depend on tokens alone
    slot = int(view.slot[0, merged[0]])
    own = past.keys(0)[:, (past.slot[0] == slot) & (past.kind[0] == VIDEO)]
    torch.testing.assert_close(bare[:, 0], own.mean(1), atol=1e-4, rtol=1e-4)
