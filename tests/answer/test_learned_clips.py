"""Clips that a summarizer was trained for: VideoStreaming's rules by hand, and training against the session."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from worlds.lma import Adapted
from worlds.vlms import with_clip_summarizer

from liteframe import StreamSession, load_video_llm, memories
from liteframe.align.batch import collate_samples
from liteframe.align.clip_choice import clips_of_span, cut_video, divergence, draw_clips, gumbel, read_clips
from liteframe.align.conversation_rows import Conversation, MediaItem
from liteframe.align.dataset import LoadedMedia, Sample
from liteframe.align.objectives import learned_clips as objective
from liteframe.align.objectives.learned_clips import ClipTuning
from liteframe.models.vlm.chat import Turn, encode_conversation
from liteframe.models.vlm.clip_summarizer import ClipSettings, add_clip_summarizer, first_layers, time_text
from liteframe.models.vlm.processor import Slot, grid_slots
from liteframe.models.vlm.trained_memory import part_of

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]
SCORES = torch.tensor([0.9, 0.2, 0.7, 0.65, 0.1, 0.72])


def test_the_choice_by_hand():
    noise = torch.tensor([-0.5, 0.3, 0.1, 1.2, 0.0, -0.9])
    assert draw_clips(SCORES, 3, torch.zeros(6))[0] == [0, 2, 5]
    chosen, mask = draw_clips(SCORES, 3, noise)
    assert chosen == [1, 2, 3]
    assert mask.tolist() == [0, 1, 1, 1, 0, 0]
    soft = torch.tensor([0.1092, 0.1206, 0.1628, 0.4654, 0.0809, 0.0611])
    found = torch.autograd.functional.jacobian(lambda scores: draw_clips(scores, 3, noise)[1], SCORES)
    torch.testing.assert_close(found, soft.diag() - soft[:, None] * soft, atol=1e-4, rtol=0)
    assert divergence(SCORES, [2, 3]).item() == pytest.approx(1.0086, abs=5e-5)
    torch.manual_seed(0)
    draws = gumbel(20_000)
    assert draws.mean().item() == pytest.approx(0.5772, abs=0.03)  # Euler's constant
    assert draws.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.06)


def test_times_by_hand():
    times = [(1.0, 1.9), (2.0, 2.9), (3.0, 3.5)]
    spans = [(0.0, 0.5), (1.95, 1.97), (1.5, 2.0), (2.0, 3.0), (9.0, 9.5)]
    assert [clips_of_span(times, span) for span in spans] == [[0], [0], [0, 1], [1, 2], [2]]
    assert time_text(None, 0.0, 1.875) == "0-1.9 s: "
    assert time_text(1.875, 2.0, 3.0) == "0-1.9 s, 2-3 s: "
    features = torch.arange(14.0).view(7, 2)  # three slots of two tokens, of which the last has one frame; and an end
    video = cut_video(features, grid_slots(9, 4, 2), [(0.0, 3.0), (4.0, 7.0), (8.0, 8.0)], 3)
    assert (video.lines, video.times, video.end.tolist()) == ([Slot(0, 8, 2)], [(0.0, 8.0)], [[12, 13]])
    torch.testing.assert_close(video.means[0], (4 * features[0:2] + 4 * features[2:4] + features[4:6]) / 9)


@pytest.fixture(scope="module")
def summarizer(loaded):
    return part_of(with_clip_summarizer(loaded["liteframe_internvl"], std=0.3)[0])


def read(summarizer, features, every=1):
    """A video of slots [S,N,D], whose words are nothing."""
    count, tokens, width = features.shape
    slots = grid_slots(4 * count, 4, tokens)
    video = cut_video(features.flatten(0, 1), slots, [(4.0 * n, 4.0 * n + 3) for n in range(count)], every)
    read_clips(summarizer, [video], lambda text: torch.zeros(1, width))
    return video


def test_a_clip_knows_the_past_and_its_gradient_goes_back_two_clips(summarizer):
    torch.manual_seed(0)
    features = torch.randn(4, 4, 128, requires_grad=True)
    memories = read(summarizer, features).memories
    reached = []
    for memory in memories:
        (found,) = torch.autograd.grad(memory.square().sum(), features, retain_graph=True)
        reached.append(found.abs().sum((1, 2)).bool().tolist())
    assert reached == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, True, True],
    ]
    changed = features.detach().clone()
    changed[0] += 1
    moved = [not torch.equal(a, b) for a, b in zip(memories, read(summarizer, changed).memories, strict=True)]
    assert moved == [True] * 4
    alone = copy.deepcopy(summarizer)
    alone.settings.propagate = False
    pair = read(alone, features).memories, read(alone, changed).memories
    assert [not torch.equal(a, b) for a, b in zip(*pair, strict=True)] == [True, False, False, False]


def test_summary_tokens_see_what_is_before_them_and_the_indicator_all(summarizer):
    features = torch.randn(1, 4, 128)
    before = read(summarizer, features)
    for part, place in (("summary", 3), ("indicator", ...)):
        other = copy.deepcopy(summarizer)
        getattr(other, part).data[place] += 1
        after = read(other, features)
        rows = (before.memories[0] == after.memories[0]).all(1).tolist()
        assert rows == [True, True, True, part != "summary"]
        assert not torch.equal(before.keys[0], after.keys[0])


def test_it_begins_as_the_first_layers_with_the_update_of_lora(loaded):
    language_model = copy.deepcopy(loaded["liteframe_internvl"][0].model.language_model)
    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), language_model)
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weights)
    inputs = torch.randn(2, 5, 128)
    with torch.no_grad():
        found = first_layers(language_model, 2)(inputs_embeds=inputs).last_hidden_state
        hidden = language_model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(found, language_model.norm(hidden), atol=1e-5, rtol=1e-5)


def trained_forward(pair, videos):
    """Log-probabilities [B,4] of WORDS as the first of an answer, by the objective of training; draws have no noise."""
    model, processor = pair
    tuning = ClipTuning(part_of(model).settings, processor)
    turns = (Turn("user", f"<video>\n{QUESTION}"), Turn("assistant", "red"))
    tuning.conversations = [Conversation((MediaItem("video", ("a",)),), turns)] * len(videos)
    tuning.spans = [None] * len(videos)
    samples = []
    for number, video in enumerate(videos):
        key = ("a", tuple(range(len(video))))
        seconds = [float(second) for second in range(len(video))]
        shown = processor.shown_video(len(video), *processor.frame_size, seconds)
        ids, labels = encode_conversation(turns, [shown.text], processor.tokenizer)
        samples.append(Sample(ids, labels, [LoadedMedia(None, key, shown, seconds)], (0, number)))
    batch = collate_samples(samples, 0, processor.image_token_id)
    pixels = torch.cat([processor.pixels(video) for video in videos])
    with torch.no_grad():
        features = model.model.get_video_features(pixels, [len(video) for video in videos])
        _, logits = tuning.loss(Adapted(model), {"mm_encoder_outputs": {"video": features}}, batch)
    return logits[:, 0].log_softmax(-1)[:, processor.tokenizer.convert_tokens_to_ids(WORDS)]


def no_noise(count):
    return torch.zeros(count)


@pytest.mark.parametrize(("family", "propagate"), [("internvl", True), ("internvl", False), ("llava_onevision", True)])
def test_training_reads_what_a_session_shows(loaded, video, monkeypatch, family, propagate):
    settings = {"slots_per_clip": 2, "chosen": 1, "propagate": propagate}
    pair = with_clip_summarizer(loaded[f"liteframe_{family}"], seed=7, std=0.1, **settings)
    monkeypatch.setattr(objective, "gumbel", no_noise)
    found = trained_forward(pair, [video, video[::-1][:20].copy()])  # four clips, of which the last is short; and three
    early = []
    for row, frames in zip(found, (video, video[::-1][:20]), strict=True):
        session = StreamSession(*pair, memories["learned_clips"](4096))
        session.add(frames)
        torch.testing.assert_close(row, session.score(QUESTION, WORDS), atol=1e-5, rtol=1e-5)
        early.append(session._shown(QUESTION).slots[0][0] == 0)
        other = StreamSession(*pair, memories["learned_clips"](4096, chosen=2))
        other.add(frames)
        assert not torch.allclose(row, other.score(QUESTION, WORDS), atol=1e-4)
    assert any(early)  # else the newest that may be chosen are


def test_untrained_memories_are_means(loaded, video):
    """Those of memory `clips`, to the bit; and where a budget merges some, the last one's own memory is still read."""
    pair = with_clip_summarizer(loaded["liteframe_internvl"], slots_per_clip=2)
    sessions = {
        name: StreamSession(*pair_of, memories[name](64, **options))
        for name, pair_of, options in (
            ("learned_clips", pair, {"chosen": 9}),
            ("clips", loaded["liteframe_internvl"], {"slots_per_clip": 2, "chosen": 9, "selector": "last"}),
        )
    }
    tight = StreamSession(*pair, memories["learned_clips"](8))
    for session in (*sessions.values(), tight):
        session.add(video)
    learned, plain = (session._shown(QUESTION) for session in sessions.values())
    assert torch.equal(learned.tokens, plain.tokens)
    assert (learned.slots, learned.times) == (plain.slots, plain.times)
    assert len(tight.memory._clips) == 2
    whole = sessions["learned_clips"].memory.state()["history"]
    assert torch.equal(tight.memory.state()["history"], whole)


def test_where_there_is_nothing_to_choose_all_is_shown(loaded):
    _, processor = loaded["liteframe_internvl"]
    for settings, clips in (({"chosen": 5}, range(6)), ({"chosen": 6, "newest": 0}, range(6))):
        choice = ClipTuning(ClipSettings(**settings), processor)._choice(SCORES)
        assert (choice.clips, choice.mask.tolist()) == ([*clips], [1] * 6)
    choice = ClipTuning(ClipSettings(chosen=1, newest=2), processor)._choice(SCORES)
    assert choice.clips[1:] == [4, 5]


def test_what_cannot_be_is_named(loaded, trained):
    model, processor = loaded["liteframe_internvl"]
    with pytest.raises(ValueError, match="reads with an adapter's clip summarizer, which this model does not have"):
        StreamSession(model, processor, memories["learned_clips"](64))
    with pytest.raises(ValueError, match="was trained for memory 'learned_clips', not for 'clips'"):
        StreamSession(*trained["learned_clips"]["liteframe_internvl"], memories["clips"](64))
    with pytest.raises(ValueError, match="was trained for memory 'summary', not for 'learned_clips'"):
        StreamSession(*trained["summary"]["liteframe_internvl"], memories["learned_clips"](64))
    with pytest.raises(ValueError, match=r"layers=5: the language model has 4"):
        add_clip_summarizer(model, processor, ClipSettings(layers=5))
    with pytest.raises(ValueError, match="this internvl has not"):
        add_clip_summarizer(*loaded["internvl"], ClipSettings())
    aspect = copy.copy(processor)
    aspect.resize = "aspect"
    with pytest.raises(ValueError, match="frames in their own aspect ratio have not"):
        add_clip_summarizer(model, aspect, ClipSettings())
    for settings in ({"layers": 0}, {"chosen": 0}, {"temperature": 0.0}, {"newest": -1}):
        with pytest.raises(ValueError, match="layers, slots_per_clip and chosen of at least 1"):
            ClipSettings(**settings)
    with pytest.raises(ValueError, match=r"kl_warmup is 0\.5: a share of the run, below 1, in which kl_weight"):
        ClipSettings(kl_warmup=0.5, kl_weight=0.0)
    with pytest.raises(ValueError, match="memory 'learned_clips' needs an adapter that was trained for it"):
        load_video_llm("toyworld", memory="learned_clips")
