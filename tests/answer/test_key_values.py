"""What stays of a KV cache against transformers' own attention over everything, with a mask."""

import copy

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from liteframe import StreamSession, memories
from liteframe.answer.key_values import LABEL, TEXT, VIDEO, KeyValues
from liteframe.answer.positions import Compact, Keep, Stretch, Time, rotate
from liteframe.answer.prefill import cache_name
from liteframe.answer.reader import watch_queries
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.mrope import Mrope

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]


def test_rotation_by_hand():
    frequencies = torch.tensor([1.0, 0.01])
    key = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    at = {position: rotate(key, torch.tensor([position]), frequencies) for position in (1, 3, 5)}
    expected = {
        1: [0.5403, -0.0100, 0.8415, 1.0000],
        3: [-0.9900, -0.0300, 0.1411, 0.9996],
        5: [0.2837, -0.0500, -0.9589, 0.9988],
    }
    for position, values in expected.items():
        torch.testing.assert_close(at[position], torch.tensor([values]), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotate(at[5], torch.tensor([-2]), frequencies), at[3], atol=1e-6, rtol=0)
    query = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    product = (rotate(query, torch.tensor([7]), frequencies) * at[5]).sum()
    assert product == pytest.approx(-0.396148, abs=1e-6)
    assert (rotate(query, torch.tensor([4]), frequencies) * at[5]).sum() == pytest.approx(0.530302, abs=1e-6)


def test_positions_in_seconds():
    """Qwen2.5-VL's, slots of 4 frames at 1, 2 and 3 frames a second; clips go on where the stream is."""

    def starts(begin, numbers, seconds):
        slots = [(4 * number, 4 * number + 3, 1) for number in numbers]
        times = [(number * seconds, (number + 0.75) * seconds) for number in numbers]
        return (begin + Mrope(2.0).places(slots, (1, 1), times)[0]).tolist()

    assert starts(5, range(4), 4.0) == [5, 13, 21, 29]
    assert starts(5, range(4), 2.0) == [5, 9, 13, 17]
    assert starts(5, range(4), 4 / 3) == [5, 7, 10, 13]
    assert starts(0, range(3), 4 / 3) + starts(0, range(3, 7), 4 / 3) == [0, 2, 5, 8, 10, 13, 16]


@pytest.fixture
def language(liteframe_vlm):
    """A language model of 4 layers, and random embeddings [1,24,D] for it."""
    model, _ = liteframe_vlm
    torch.manual_seed(0)
    return model, 0.3 * torch.randn(1, 24, model.config.text_config.hidden_size)


def masked(model, embeddings, seen):
    """The last hidden states [n,D] of one pass in which row i sees what `seen` [n,n] says."""
    blocked = torch.full(seen.shape, torch.finfo(torch.float32).min).masked_fill(seen, 0.0)
    with torch.inference_mode():
        return model.model.language_model(
            inputs_embeds=embeddings, attention_mask=blocked[None, None]
        ).last_hidden_state[0]


def last_hidden(past, embeddings):
    """Of what reads on, in a fork."""
    past, count = past.fork(), embeddings.shape[1]
    ids = torch.arange(past.next, past.next + count)[None]
    inputs = {cache_name(past.language_model): past.cache}
    return past.language_model(inputs_embeds=embeddings, position_ids=ids, **inputs).last_hidden_state[0]


@torch.inference_mode()
def test_what_was_dropped_is_what_a_mask_hides(language):
    model, embeddings = language
    past = KeyValues(model, Keep())
    past.read(embeddings[:, :10], torch.full((10,), VIDEO))
    kept = torch.tensor([0, 1, 4, 5, 9])
    past.keep(kept)
    past.read(embeddings[:, 10:20], torch.full((10,), LABEL), slot=1)
    seen = torch.ones(24, 24, dtype=torch.bool).tril()
    seen[10:, [2, 3, 6, 7, 8]] = False
    expected = masked(model, embeddings, seen)
    torch.testing.assert_close(last_hidden(past, embeddings[:, 20:]), expected[20:], atol=1e-5, rtol=1e-4)
    assert (len(past), past.next) == (15, 20)
    assert past.positions[2].tolist() == [*kept.tolist(), *range(10, 20)]
    assert (past.count(VIDEO), past.count(LABEL), past.count(TEXT)) == (5, 10, 0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbering_anew_does_not_drift(language, dtype):
    model, embeddings = language
    model = copy.deepcopy(model).to(dtype)
    plain = DynamicCache(config=model.config.text_config)
    language_model = model.model.language_model
    language_model(inputs_embeds=embeddings[:, :4].to(dtype), use_cache=True, **{cache_name(language_model): plain})
    past = KeyValues(model, Keep())
    past.read(embeddings[:, :4].to(dtype), torch.full((4,), VIDEO))
    for _ in range(50):  # the newest entry moves by 20 each time
        past.next = past.next + 20
        past.read(embeddings[:, 4:5].to(dtype), torch.full((1,), VIDEO))
        past.keep(torch.tensor([0, 1, 2, 3]))
        past.compact()
    assert past.positions[0].tolist() == [0, 1, 2, 3]
    for ours, once in zip(past.cache.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, once.keys)
    past.keep(torch.tensor([1, 3]))
    past.compact()
    frequencies = language_model.rotary_emb.inv_freq
    moved = rotate(plain.layers[3].keys[0, :, [1, 3]], torch.tensor([-1, -2]), frequencies)
    assert torch.equal(past.cache.layers[3].keys[0], moved.to(dtype))
    bare = rotate(plain.layers[3].keys[0, :, [1, 3]], torch.tensor([-1, -3]), frequencies)
    torch.testing.assert_close(past.keys(3), bare)


@torch.inference_mode()
def test_queries_are_those_that_attention_computes(language):
    model, embeddings = language
    eager = copy.deepcopy(model.model.language_model)
    eager.set_attn_implementation("eager")
    expected = eager(inputs_embeds=embeddings, output_attentions=True).attentions
    past = KeyValues(model, Keep())
    past.read(embeddings[:, :20], torch.full((20,), VIDEO))
    with watch_queries(past.language_model) as queries:
        past.read(embeddings[:, 20:], torch.full((4,), TEXT))
    for layer, (own, whole) in enumerate(zip(queries, expected, strict=True)):
        keys = past.cache.layers[layer].keys[0].repeat_interleave(len(own) // past.cache.layers[layer].keys.shape[1], 0)
        scores = own @ keys.mT / keys.shape[-1] ** 0.5  # [heads,4,24]
        scores.masked_fill_(~torch.ones(4, 24, dtype=torch.bool).tril(20), -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), whole[0, :, 20:], atol=1e-5, rtol=1e-4)


def test_a_sink_window_is_one_pass_with_a_mask(loaded, video):
    """Each slot was read when the two before it were held; the question sees the last three."""
    model, processor = loaded["liteframe_internvl"]
    session = StreamSession(model, processor, memories["sink_window"](12))
    session.add(video[:24])
    inputs = processor(text=question_prompt(QUESTION), videos=[video[:24]], return_tensors="pt")
    ids = inputs["input_ids"][0]
    end = processor.tokenizer.convert_tokens_to_ids("</img>")
    ends = (ids == end).nonzero()[:, 0]  # of 6 slots
    head = int((ids == processor.tokenizer.convert_tokens_to_ids("Frame")).nonzero()[0])
    owner = torch.bucketize(torch.arange(len(ids)), ends)  # the question's is 6
    owner[:head] = -1
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for row, own in enumerate(owner.tolist()):
        held = 3 if own == 6 else 4  # a slot is read before the oldest one goes
        seen[row] &= (owner == -1) | (owner > own - held) & (own < 6) | (owner >= 3) & (own == 6)
    with torch.inference_mode():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
        embeddings = model.get_input_embeddings()(ids[None])
        embeddings[0, ids == processor.image_token_id] = features
        logits = model.lm_head(masked(model, embeddings, seen))[-1].log_softmax(-1)
    expected = logits[processor.tokenizer.convert_tokens_to_ids(WORDS)]
    torch.testing.assert_close(session.score(QUESTION, WORDS), expected, atol=1e-4, rtol=1e-4)
    assert session.size().tokens == 12
    answers = {
        session.ask(QUESTION, max_new_tokens=4).text,
        "".join(session.stream(QUESTION, max_new_tokens=4)).strip(),
    }
    assert len(answers) == 1


def test_an_answer_is_that_of_an_own_loop(vlm, video):
    model, processor = vlm
    session = StreamSession(model, processor, memories["sink_window"](9 * 81))
    session.add(video)
    past = session.memory.fork().context(QUESTION).fork()
    if session._intake.waiting is not None:
        past = session._shown(QUESTION).fork()
    request = session._reader().question(past, question_prompt(QUESTION).split("<video>")[1], 5)
    ids, position, found = request["input_ids"][:, -1:], past.next, []
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    with torch.inference_mode():
        for step in range(5):
            inputs = {cache_name(past.language_model): past.cache, "position_ids": torch.tensor([[position + step]])}
            hidden = past.language_model(ids, **inputs).last_hidden_state
            ids = model.lm_head(hidden[:, -1:]).argmax(-1)
            if int(ids) in ends:
                break
            found.append(int(ids))
    words = processor.tokenizer.decode(found, skip_special_tokens=True).strip()
    assert session.ask(QUESTION, max_new_tokens=5).text == words


def test_a_stream_without_end(liteframe_vlm, video, monkeypatch):
    model, _ = liteframe_vlm
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 160)
    kept = StreamSession(*liteframe_vlm, memories["sink_window"](8))
    kept.add(video[:24])
    before = kept.memory.state()
    with pytest.raises(ValueError, match=r"pass the 160 that the language model reads; use positions=Compact\(\)"):
        kept.add(np.concatenate([video[:24]] * 5))
    assert kept.frames == 24
    assert all(torch.equal(value, before[name]) for name, value in kept.memory.state().items())
    endless = StreamSession(*liteframe_vlm, memories["sink_window"](8), positions=Compact(at=100))
    for _ in range(10):
        endless.add(video[:24])
    past = endless.memory.context(QUESTION)
    assert (past.positions.diff(dim=1) > 0).all()
    assert past.next <= 100 + 24
    with pytest.raises(ValueError, match="more pass the 160"):
        endless.ask(QUESTION, max_new_tokens=150)
    assert endless.ask(QUESTION, max_new_tokens=3).frames == 240


def test_stretched_positions_are_transformers_own_yarn(liteframe_vlm, video):
    model, processor = liteframe_vlm
    session = StreamSession(model, processor, positions=Stretch(4.0))
    session.add(video)
    plain = StreamSession(model, processor)
    plain.add(video)
    config = copy.deepcopy(model.config)
    limit = config.text_config.max_position_embeddings
    config.text_config.rope_parameters = {
        "rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": limit,
    }  # fmt: skip
    theirs = type(model)(config).eval()
    theirs.load_state_dict(model.state_dict())
    inputs = processor(text=question_prompt(QUESTION), videos=[video], return_tensors="pt")
    with torch.inference_mode():
        logits = theirs(**inputs).logits[0, -1].log_softmax(-1)
    expected = logits[processor.tokenizer.convert_tokens_to_ids(WORDS)]
    torch.testing.assert_close(session.score(QUESTION, WORDS), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain.score(QUESTION, WORDS), expected, atol=1e-3)
    assert session.model.config.text_config.max_position_embeddings == 4 * limit
    assert model.config.text_config.max_position_embeddings == limit


def test_settings_without_effect_are_refused(liteframe_vlm, video):
    with pytest.raises(ValueError, match="memory 'window' keeps none; leave it out"):
        StreamSession(*liteframe_vlm, memories["window"](8), positions=Compact())
    with pytest.raises(ValueError, match=r"M-RoPE.*use labels='seconds'"):
        StreamSession(*liteframe_vlm, positions=Time(2.0))
    with pytest.raises(ValueError, match="a factor above 1"):
        StreamSession(*liteframe_vlm, positions=Stretch(1.0))
    with pytest.raises(ValueError, match="labels='minutes': expected one of frames, seconds, none"):
        StreamSession(*liteframe_vlm, labels="minutes")
    session = StreamSession(*liteframe_vlm, memories["sink_window"](8))
    session.with_system("Which object ?")
    session.add(video)
    with pytest.raises(ValueError, match="start a new session"):
        session.with_system("Which object ?")
    with pytest.raises(ValueError, match="give it to a StreamSession"):
        memories["sink_window"](8).add(None)
