"""Frames read into the KV cache as they come give the cache, and the answer, of the plain way."""

import threading
import time

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode
from worlds import ROOT
from worlds.ctd import write_video
from worlds.students import make_student, student_config
from worlds.vlms import answer_about

from liteframe.answer.ask import AHEAD, ask, read_ahead
from liteframe.answer.prefill import cache_name
from liteframe.answer.session import StreamSession
from liteframe.data.video.process import DecodeProcess
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

QUESTION = "Which way does the red circle move?"


@pytest.fixture(scope="module")
def pair():
    _, processor = load_video_llm(ROOT / "liteframe/toyworld/checkpoint")
    mean, std = processor.video_processor.image_mean, processor.video_processor.image_std
    encoder = make_student(student_config(dim=32, image_mean=tuple(mean), image_std=tuple(std)))
    return load_video_llm(ROOT / "liteframe/toyworld/checkpoint", encoder=encoder)


def cut(video, size=8):
    return [video[i : i + size] for i in range(0, len(video), size)]


def test_ask_reads_a_file_clip_by_clip(pair, tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=40, fps=8, seed=3)
    with DecodeProcess() as decoder:
        shown = decoder.read(path, [2, 6, 10, 14, 18, 22, 26, 30, 34, 38])
    words = "".join(ask(*pair, path, QUESTION, frames=10, max_new_tokens=8, overlap=True))
    assert words.strip() == answer_about(*pair, shown, QUESTION, max_new_tokens=8)
    assert words.strip()


def test_the_cache_holds_the_prompt_but_for_its_last_token(pair, video):
    model, processor = pair
    session = StreamSession(model, processor, prefill=True)
    for clip in cut(video):
        session.add(clip)
    inputs = processor(text=question_prompt(QUESTION), videos=[video], return_tensors="pt")
    request, shown = session._request(QUESTION, 8)
    assert shown == int((inputs["input_ids"] == processor.image_token_id).sum())
    assert torch.equal(request["input_ids"], inputs["input_ids"])
    name = cache_name(model.model.language_model)
    cache = request[name]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] - 1
    with torch.inference_mode():
        plain = model(**inputs, use_cache=True)
        last = model.lm_head(
            model.model.language_model(request["input_ids"][:, -1:], **{name: cache}).last_hidden_state
        )[:, -1]
    assert (plain.logits[:, -1] - last).abs().max() < 1e-4 * plain.logits.abs().max()
    for ours, whole in zip(cache.layers, plain[name].layers, strict=True):
        torch.testing.assert_close(ours.keys, whole.keys, atol=1e-4, rtol=1e-3)


class Attention(TorchFunctionMode):
    """What reaches torch's attention: heads, their channels, numbers of queries and keys, options."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, key = args[:2]
            self.calls.append((query.shape[1], query.shape[3], query.shape[2], key.shape[2], kwargs))
        return func(*args, **(kwargs or {}))


def test_every_part_is_read_by_flash_attention_over_grouped_queries(pair, video):
    """No mask but a causal bias, for which torch has flash attention, and no repeated keys: four heads, two groups."""
    model, processor = pair
    with Attention() as seen:
        session = StreamSession(model, processor, prefill=True)
        for clip in cut(video):
            session.add(clip)
        session.ask(QUESTION, max_new_tokens=2)
    calls = [call for call in seen.calls if call[1] == 32]  # the language model's
    assert len({(queries, keys) for _, _, queries, keys, _ in calls}) >= 6  # 4 clips, the question, two tokens
    read = 0
    for heads, _, queries, keys, options in calls:
        assert heads == 4
        assert options["enable_gqa"]
        mask, in_parts = options["attn_mask"], 1 < queries < keys
        assert (type(mask) is CausalBias and mask.variant == CausalVariant.LOWER_RIGHT) if in_parts else mask is None
        assert in_parts or options["is_causal"] == (queries == keys)
        read += in_parts
    assert read >= 4 * model.config.text_config.num_hidden_layers
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_slots_are_read_as_they_come(pair, video, monkeypatch):
    model, processor = pair
    read = []
    original = model.model.language_model.forward

    def counted(**inputs):
        read.append(inputs.get("inputs_embeds", inputs.get("input_ids")).shape[1])
        return original(**inputs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    session = StreamSession(model, processor, prefill=True)
    for number, clip in enumerate(cut(video), 1):
        session.add(clip)
        assert len(read) == min(number, 3)  # the fourth fills no clip
    inputs = processor(text=question_prompt(QUESTION), videos=[video], return_tensors="pt")["input_ids"]
    session.score(QUESTION, ["left"])
    assert sum(read) == inputs.shape[1]


def test_a_question_after_another_reads_the_video_once(pair, video, monkeypatch):
    model, processor = pair
    session = StreamSession(model, processor, prefill=True)
    session.add(video[:24])
    read = session._prefilled.read
    first = session.ask(QUESTION, max_new_tokens=4)
    assert session.ask(QUESTION, max_new_tokens=4) == first
    assert session._prefilled.read == read


def test_what_the_language_model_cannot_read_ends_the_stream(pair, video, monkeypatch):
    model, processor = pair
    session = StreamSession(model, processor, prefill=True)
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 40)
    with pytest.raises(ValueError, match="use fewer frames"):
        session.add(video)


def test_reading_ahead_starts_before_the_first_part_is_used_and_ends_with_its_reader(video):
    used, begun = [], threading.Event()

    def parts():
        for part in cut(video):
            used.append(len(part))
            yield part
        begun.set()

    before = threading.active_count()
    ahead = read_ahead(parts(), AHEAD)
    first = next(ahead)
    assert begun.wait(20), "nothing was read while the first part was used"
    assert len(first) + sum(map(len, ahead)) == len(video)
    stopped = read_ahead(iter(cut(video, 1)), 2)
    next(stopped)
    stopped.close()
    time.sleep(0.01)
    assert threading.active_count() == before


def test_errors_of_the_reader_reach_the_caller(video):
    def broken():
        yield video[:8]
        raise OSError("disk gone")

    parts = []
    with pytest.raises(OSError, match="disk gone"):
        parts += read_ahead(broken(), AHEAD)
