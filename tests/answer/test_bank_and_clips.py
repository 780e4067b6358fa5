"""Memories of merged tokens against numbers by hand: MA-LMM's bank, clips and what a question chooses, segments."""

import numpy as np
import pytest
import torch

from liteframe import StreamSession, memories
from liteframe.answer.memory.segments import filter_slots
from liteframe.reduce.bank import merge_most_alike
from liteframe.reduce.base import Tokens
from liteframe.reduce.scenes import StreamCutter, boundaries, depths
from liteframe.reduce.selection import newest_top

QUESTION = "Which way does the red object move?"


def slots(values, first=0):
    """Values [S,N,C] as slots of 4 frames, from a slot on; a frame a second."""
    values = torch.as_tensor(values, dtype=torch.float32)
    numbers, count = range(first, first + len(values)), values.shape[1]
    frame = torch.tensor(numbers).repeat_interleave(count) * 4
    lines = [(4 * slot, 4 * slot + 3, count) for slot in numbers]
    times = [(4.0 * slot, 4.0 * slot + 3) for slot in numbers]
    place = torch.arange(count).repeat(len(values))
    return Tokens(values.flatten(0, 1), frame, place, torch.ones(len(frame)), lines, times)


def bank_of(memory):
    return memory.state()["tokens"], memory.state()["sizes"]


def near(values, expected):
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_bank_by_hand():
    memory = memories["bank"](2)
    frames = [(1, 0), (1, 0.1), (0, 1), (0, 1.2), (1, 1)]
    expected = {
        2: ([[1, 0.05], [0, 1]], [2, 1]),
        3: ([[1, 0.05], [0, 1.1]], [2, 2]),
        4: ([[1, 0.05], [0.3333, 1.0667]], [2, 3]),
    }
    for number, frame in enumerate(frames):
        memory.add(slots([[frame]], number))
        if number in expected:
            tokens, sizes = bank_of(memory)
            near(tokens[:, 0], expected[number][0])
            assert sizes[:, 0].tolist() == expected[number][1]
    assert memory.context("").slots == [(0, 7, 1), (8, 19, 1)]
    assert memory.context("").times == [(0.0, 7.0), (8.0, 19.0)]


def test_each_position_merges_on_its_own():
    values = torch.tensor([[[1, 0], [0, 1]], [[1, 0.1], [1, 0]], [[0, 1], [1, 0.2]], [[0, 1.2], [-1, 0]]])
    values, sizes, choice = merge_most_alike(values, torch.ones(4, 2), together=False)
    assert choice.tolist() == [2, 1]
    near(values[:, 0], [[1, 0], [1, 0.1], [0, 1.1]])
    near(values[:, 1], [[0, 1], [1, 0.1], [-1, 0]])
    values, sizes, choice = merge_most_alike(values, sizes, together=False)
    assert choice.tolist() == [0, 0]
    near(values[0], [[1, 0.05], [0.6667, 0.4]])
    assert sizes.tolist() == [[2, 3], [2, 1]]


def test_slots_merge_as_wholes():
    rows = [[(1, 0), (0, 1)], [(1, 0.2), (1, 0)], [(0, 1), (1, 0.1)]]
    whole, each = memories["bank"](4, granularity="slot"), memories["bank"](4)
    for memory in (whole, each):
        memory.add(slots(rows))
    near(bank_of(whole)[0], [[[1, 0], [0, 1]], [[0.5, 0.6], [1, 0.05]]])
    near(bank_of(each)[0], [[[1, 0.1], [0, 1]], [[0, 1], [1, 0.05]]])
    assert whole.context("").slots == [(0, 3, 2), (4, 11, 2)]
    assert each.context("").slots == [(0, 7, 2), (4, 11, 2)]  # of different frames at different places


def test_a_bank_of_one_is_the_mean_and_every_slot_counts():
    torch.manual_seed(0)
    values = torch.randn(20, 3, 5)
    memory = memories["bank"](3)
    memory.add(slots(values))
    near(bank_of(memory)[0][0], values.mean(0).tolist())
    memory = memories["bank"](12)
    for first in (0, 7, 13):
        memory.add(slots(values[first : {0: 7, 7: 13, 13: 20}[first]], first))
    tokens, sizes = bank_of(memory)
    assert tokens.shape == (4, 3, 5)
    assert sizes.sum(0).tolist() == [20] * 3
    near((tokens * sizes[..., None]).sum(0) / 20, values.mean(0).tolist())
    constant = memories["bank"](6)
    constant.add(slots(torch.ones(9, 3, 5)))
    assert torch.equal(constant.context("").tokens, torch.ones(6, 5))
    swapped = memories["bank"](12)
    swapped.add(slots(values[:, [2, 0, 1]]))
    assert torch.equal(bank_of(swapped)[0], tokens[:, [2, 0, 1]])


def test_labels_claim_no_frames_that_are_not_inside(liteframe_vlm, video):
    session = StreamSession(*liteframe_vlm, memories["bank"](12))
    session.add(video[:24])
    shown = session._shown(QUESTION)
    overlap = any(after[0] <= before[1] for before, after in zip(shown.slots, shown.slots[1:], strict=False))
    text = session._lines.text(shown)
    assert overlap
    assert [line.partition(":")[0] for line in text.split("\n")] == [f"Part {part} of 3" for part in (1, 2, 3)]
    whole = StreamSession(*liteframe_vlm, memories["bank"](12, granularity="slot"))
    whole.add(video[:24])
    lines = whole._lines.text(whole._shown(QUESTION)).split("\n")
    assert [line.partition(":")[0] for line in lines] == [
        f"Frame{first + 1}-{last + 1}" for first, last, _ in whole._shown(QUESTION).slots
    ]


def test_slots_that_are_alike_become_one():
    clip = slots([[[1, 0]], [[1, 0.1]], [[1, 0.2]], [[0, 1]], [[0.1, 1]]])
    filtered = filter_slots(clip, 0.95)
    near(filtered.tokens, [[1, 0.1], [0.05, 1]])
    assert filtered.slots == [(0, 11, 1), (12, 19, 1)]
    assert filtered.size.tolist() == [3, 2]
    assert filter_slots(clip, 1.0).slots == clip.slots


CUTS = [0.9, 0.95, 0.6, 0.9, 0.97, 0.8, 0.85, 0.4, 0.9]


def test_depth_by_hand():
    assert depths(CUTS) == pytest.approx([0.05, 0, 0.72, 0.07, 0, 0.22, 0, 0.95, 0])
    assert boundaries(CUTS) == [2, 7]
    assert depths([0.9, 0.5, 0.5, 0.9]) == pytest.approx([0, 0.8, 0.8, 0])
    assert boundaries([0.9, 0.5, 0.5, 0.9]) == [1, 2]
    assert boundaries([0.3]) == boundaries([]) == boundaries([1.0] * 8) == []
    assert len(boundaries([0.9, 0.1] * 40 + [0.9])) <= 15


def test_a_stream_is_cut_where_the_whole_video_is():
    generator = np.random.default_rng(0)
    scenes = generator.normal(size=(6, 32))
    lengths = [5, 7, 4, 9, 6, 8]
    globs = [
        scene + 0.1 * generator.normal(size=32) for scene, n in zip(scenes, lengths, strict=True) for _ in range(n)
    ]
    globs = torch.tensor(np.array(globs), dtype=torch.float32)
    offline = boundaries(torch.cosine_similarity(globs[:-1], globs[1:]).tolist())
    assert offline == [4, 11, 15, 24, 30]
    cutter, ends, seen = StreamCutter(), [], 0
    for glob in globs:
        if (cut := cutter.add(glob)) is not None:
            seen += cut
            ends.append(seen - 1)
    assert ends[-3:] == offline[-3:]  # the first scenes set the scale
    assert set(ends) <= set(offline)
    constant = StreamCutter(longest=3)
    assert [constant.add(torch.ones(4)) for _ in range(7)] == [None, None, None, 3, None, None, 3]
    with pytest.raises(ValueError, match="expected 1 <= shortest <= longest"):
        StreamCutter(shortest=5, longest=4)


def test_the_best_clips_in_order_of_time_and_of_equals_the_newest():
    assert newest_top(torch.tensor([0.9, 0.2, 0.7, 0.65, 0.1, 0.72]), 3) == [0, 2, 5]
    assert newest_top(torch.tensor([0.5, 0.5, 0.1, 0.5]), 2) == [1, 3]


def shown_clips(memory, question=""):
    return [first // 8 for first, _, _ in memory.context(question).slots]


def test_clips_are_means_and_neighbors_that_are_alike_become_one():
    torch.manual_seed(0)
    values = torch.randn(11, 2, 3)
    memory = memories["clips"](100, slots_per_clip=2, chosen=2, selector="last")
    for first in range(0, 11, 3):
        memory.add(slots(values[first : first + 3], first))
    assert shown_clips(memory) == [3, 4, 5]
    near(memory.context("").tokens[:2], values[6:8].mean(0).tolist())
    near(memory.context("").tokens[4:], values[10].tolist())  # the clip that is not complete
    values[4:6] = values[2:4] + 0.01  # the second and the third
    full = memories["clips"](8, slots_per_clip=2, chosen=9, selector="last")
    full.add(slots(values[:10]))
    assert full.context("").slots == [(0, 7, 2), (8, 23, 2), (24, 31, 2), (32, 39, 2)]
    near(full.context("").tokens[2:4], values[2:6].mean(0).tolist())
    whole = memories["clips"](4, slots_per_clip=2, selector="last", pool=False)
    whole.add(slots(values[:3]))
    assert whole.context("").slots == [(0, 7, 2), (8, 11, 2)]


def test_clips_end_where_the_video_changes(tmp_path):
    torch.manual_seed(0)
    scenes = torch.randn(5, 16).repeat_interleave(torch.tensor([4, 6, 5, 7, 4]), 0)
    values = (scenes + 0.02 * torch.randn(26, 16))[:, None]
    memory = memories["clips"](100, slots_per_clip=None, chosen=9, selector="last")
    memory.add(slots(values[:13]))
    other = memories["clips"](100, slots_per_clip=None, chosen=9, selector="last")
    other.load_state(memory.state())
    fork = memory.fork()
    fork.add(slots(torch.randn(9, 1, 16), 13))
    for one in (memory, other):
        one.add(slots(values[13:], 13))
        ends = [last // 4 for _, last, _ in one.context("").slots]
        assert ends[-3:] == [14, 21, 25]
    with pytest.raises(ValueError, match="below 18 slots, which it holds before a clip ends"):
        memories["clips"](17, slots_per_clip=None, selector="last").add(slots(values))


def test_selectors_choose_by_seed_and_by_meaning(liteframe_vlm):
    memory = memories["clips"](100, slots_per_clip=2, chosen=2, newest=0, selector="random", seed=1)
    memory.add(slots(torch.randn(20, 2, 3)))
    drawn = shown_clips(memory)
    assert len(drawn) == 2
    others = memories["clips"](100, slots_per_clip=2, chosen=2, newest=0, selector="random", seed=2)
    others.add(slots(torch.randn(20, 2, 3)))
    assert shown_clips(others) != drawn
    model, processor = liteframe_vlm
    memory = memories["clips"](64, slots_per_clip=1, chosen=1, newest=0, selector="embed")
    session = StreamSession(model, processor, memory)
    words = processor.tokenizer(QUESTION, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    with torch.inference_mode():
        meaning = model.get_input_embeddings()(words).mean(0)
        others = torch.randn(2, 4, len(meaning))
        session.memory.add(slots(torch.stack([others[0], meaning.expand(4, -1), others[1]])))
        assert session.memory.context(QUESTION).slots == [(4, 7, 4)]


def test_attention_chooses_by_queries_and_keys_of_the_middle_layers(liteframe_vlm, video):
    """Against the projections of the language model's own layers, by their hidden states."""
    model, processor = liteframe_vlm
    session = StreamSession(model, processor, memories["clips"](64, slots_per_clip=1, chosen=2, newest=0))
    session.add(video[:24])
    memory, language = session.memory, model.model.language_model
    head = "<|im_start|>user\n"
    heads, groups = model.config.text_config.num_attention_heads, model.config.text_config.num_key_value_heads

    def normed(embeddings, layer):
        hidden = language(inputs_embeds=embeddings, output_hidden_states=True).hidden_states[layer]
        return language.layers[layer].input_layernorm(hidden)[0]

    def embedded(text):
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return ids[0], model.get_input_embeddings()(ids)

    scores = torch.zeros(6)
    with torch.inference_mode():
        start, question = embedded(head)[1], embedded(QUESTION)[1]
        for layer in (1, 2):
            attention = language.layers[layer].self_attn
            rows = normed(torch.cat([start, question], 1), layer)[start.shape[1] :]
            query = attention.q_proj(rows).mean(0).view(groups, heads // groups, -1).mean(1)
            for number, clip in enumerate(memory._clips):
                ids, line = embedded(session._lines.line(clip.tokens, 0, True))
                line[0, ids == processor.image_token_id] = clip.tokens.tokens
                rows = normed(torch.cat([start, line], 1), layer)[start.shape[1] :][ids == processor.image_token_id]
                scores[number] += (attention.k_proj(rows).mean(0).view(groups, -1) * query).sum() / 2
        found = memory._scores(QUESTION, memory._clips, 6)
        torch.testing.assert_close(found, scores, atol=1e-4, rtol=1e-4)
        chosen = sorted(scores.argsort(descending=True)[:2].tolist())
        assert [first // 4 for first, _, _ in memory.context(QUESTION).slots] == chosen


def test_what_clips_and_banks_do_not_know_is_refused():
    with pytest.raises(ValueError, match="selector='best': expected one of attention"):
        memories["clips"](64, selector="best")
    with pytest.raises(ValueError, match="at least one clip is shown"):
        memories["clips"](64, chosen=0, newest=0)
    with pytest.raises(ValueError, match="granularity='frame': expected one of position, slot"):
        memories["bank"](64, granularity="frame")
    with pytest.raises(ValueError, match="give it to a StreamSession"):
        memories["clips"](64, slots_per_clip=1).add(slots(torch.ones(1, 2, 3)))
