"""A Q-Former with two banks: against a loop in float64, training against a session, what has gradients."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from worlds.lma import Adapted
from worlds.vlms import with_qformer

from liteframe import StreamSession, memories
from liteframe.align.batch import collate_samples
from liteframe.align.dataset import LoadedMedia, Sample
from liteframe.align.objectives.qformer import QFormerTuning
from liteframe.models.vlm.chat import Turn, encode_conversation
from liteframe.models.vlm.qformer import QFormer, QFormerSettings
from liteframe.models.vlm.trained_memory import part_of
from liteframe.reduce.bank import Bank
from liteframe.reduce.qformer_banks import read_slot, read_video

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]
SMALL = {"queries": 3, "layers": 2, "width": 64}


def by_attention(attention, queries, kept, width):
    """Two heads, row by row."""
    if attention.in_proj_weight is None:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        weights = attention.in_proj_weight.chunk(3)
    projected = [rows @ w.T + b for rows, w, b in
                 zip((queries, kept, kept), weights, attention.in_proj_bias.chunk(3), strict=True)]  # fmt: skip
    heads = []
    for head in range(width // 32):
        query, key, value = (part[:, 32 * head : 32 * (head + 1)] for part in projected)
        heads.append((query @ key.T / math.sqrt(32)).softmax(-1) @ value)
    return attention.out_proj(torch.cat(heads, -1))


def compressed(rows, sizes, length):
    """The banks of MA-LMM, each position by a loop: lists of T vectors, of T sizes."""
    while len(rows) > length:
        alike = [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(rows)]
        t = alike.index(max(alike))
        total = sizes[t] + sizes[t + 1]
        rows[t : t + 2] = [(sizes[t] * rows[t] + sizes[t + 1] * rows[t + 1]) / total]
        sizes[t : t + 2] = [total]
    return rows, sizes


def test_banks_and_attention_by_a_loop():
    """Attend to bank and slot, append, compress; times apart, so that the sine of each is the merged span's middle."""
    torch.manual_seed(0)
    channels, length = 6, 2
    former = QFormer(QFormerSettings(**SMALL), channels, 0.3).double().eval()
    for parameter in former.parameters():
        nn.init.normal_(parameter, std=0.4)
    slots = torch.randn(5, 2, channels, dtype=torch.float64)  # [S,N,C]
    spans = torch.tensor([[4.0 * s, 4.0 * s + 3, 2.0 * s, 2.0 * s + 1.5] for s in range(5)], dtype=torch.float64)
    visual = [([], [], []) for _ in range(2)]  # of each position: rows, sizes, spans
    kept = [[([], []) for _ in range(3)] for _ in range(2)]  # of each layer and query
    banks, seen = None, []
    for slot, span in zip(slots, spans, strict=True):
        shown, banks = read_slot(former, banks, Bank.of(slot, *span.tolist()), length)
        for (rows, sizes, times), row in zip(visual, slot, strict=True):
            rows.append(row), sizes.append(1), times.append(span[2:].tolist())
        seen.append(sum(len(rows) for rows, _, _ in visual))
        source = []
        for rows, _, times in visual:
            for row, (begin, end) in zip(rows, times, strict=True):
                angles = [(begin + end) / 2 / 10_000 ** (2 * i / channels) for i in range(channels // 2)]
                wave = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                source.append(former.norm(row) + torch.tensor(wave, dtype=torch.float64))
        source, queries = torch.stack(source), former.queries
        for layer, bank in zip(former.layers, kept, strict=True):
            earlier = [row for rows, _ in bank for row in rows]
            own = layer.norm(queries)
            rows = torch.cat([own, layer.norm(torch.stack(earlier))]) if earlier else own
            for (rows_of, sizes), row in zip(bank, queries, strict=True):
                rows_of.append(row.detach()), sizes.append(1)
            queries = queries + by_attention(layer.attention, own, rows, 64)
            queries = queries + by_attention(layer.cross_attention, layer.cross_norm(queries), source, 64)
            queries = queries + layer.mlp(queries)
        torch.testing.assert_close(shown[0], former.out(former.out_norm(queries)), atol=1e-5, rtol=1e-5)
        for rows, sizes, times in visual:
            before = list(rows)
            compressed(rows, sizes, length)
            if len(before) > length:
                t = next((i for i in range(length) if rows[i] is not before[i]), length - 1)
                times[t : t + 2] = [[times[t][0], times[t + 1][1]]]
        for rows, sizes in (pair for bank in kept for pair in bank):
            compressed(rows, sizes, length)
    assert seen == [2, 4, 6, 6, 6]  # the slot, beside a bank of at most 2 entries
    assert banks.visual.tokens.shape == (2, 2, channels)
    assert banks.visual.sizes.sum(0).tolist() == [5, 5]
    assert [tuple(bank.tokens.shape) for bank in banks.queries] == [(2, 3, 64)] * 2


@pytest.mark.parametrize("mixed", [False, True])
def test_only_the_last_slot_and_the_weights_have_gradients(mixed):
    """Also where autocast has cast the weights for the slots before, which are read without gradients."""
    torch.manual_seed(0)
    former = QFormer(QFormerSettings(**SMALL), 6, 0.3)
    slots = torch.randn(1, 5, 2, 6, requires_grad=True)
    spans = torch.arange(20.0, dtype=torch.float64).view(1, 5, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        read_video(former, slots, spans, 2).square().sum().backward()
    assert slots.grad[0, :4].eq(0).all()
    assert slots.grad[0, 4].ne(0).any()
    assert all(parameter.grad.any() for parameter in former.parameters())


def as_trained(pair, shown, length):
    """Log-probabilities of WORDS as the first of an answer about each video, by the objective, in one batch."""
    model, processor = pair
    tuning = QFormerTuning(QFormerSettings(**SMALL, lengths=[length]), processor)
    samples = []
    for number, frames in enumerate(shown):
        turns = [Turn("user", f"<video>\n{QUESTION}"), Turn("assistant", "red")]
        text = tuning.processor.shown_video(len(frames), *processor.frame_size).text
        ids, labels = encode_conversation(turns, [text], processor.tokenizer)
        seconds = [float(frame) for frame in range(len(frames))]
        medium = LoadedMedia(torch.empty(0), (f"{number}", tuple(range(len(frames)))), None, seconds)
        samples.append(Sample(ids, labels, [medium], (0, number)))
    batch = collate_samples(samples, 0, processor.image_token_id)
    with torch.no_grad():
        pixels = torch.cat([processor.pixels(frames) for frames in shown])
        features = model.model.get_video_features(pixels, [len(frames) for frames in shown])
        inputs = {"input_ids": batch.input_ids, "mm_encoder_outputs": {"video": features}}
        _, logits = tuning.loss(Adapted(model), inputs, batch)
    last = [int(ids.ne(-100).nonzero()[0]) - 1 for ids in batch.labels]
    answers = batch.answers.tolist()
    chosen = torch.stack([row[answers.index(place)] for row, place in zip(logits, last, strict=True)])
    return chosen.log_softmax(-1)[:, processor.tokenizer.convert_tokens_to_ids(WORDS)]


@pytest.mark.parametrize("family", ["internvl", "llava_onevision"])
def test_training_reads_as_a_session_does(loaded, video, family):
    pair = with_qformer(loaded[f"liteframe_{family}"], **SMALL)
    slot = pair[1].tokens_per_slot(*pair[1].frame_size)
    shown = [video, 255 - video, video[:11]]
    trained = as_trained(pair, shown, 3)
    for frames, scores in zip(shown, trained, strict=True):
        session = StreamSession(*pair, memories["qformer"](3 * slot))
        session.add(frames)
        torch.testing.assert_close(session.score(QUESTION, WORDS), scores, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(trained[0], trained[1], atol=1e-3)
    roomy = StreamSession(*pair, memories["qformer"](100 * slot))
    roomy.add(video)
    assert not torch.allclose(roomy.score(QUESTION, WORDS), trained[0], atol=1e-4)


def test_what_is_held_and_shown(loaded, video):
    pair = with_qformer(loaded["liteframe_internvl"], **SMALL)
    session = StreamSession(*pair, memories["qformer"](8))
    for _ in range(7):  # 70 slots of 4 tokens, in banks of 2
        session.add(video[:8].repeat(5, 0))
    state = session.memory.state()
    assert {name: tuple(tensor.shape) for name, tensor in state.items() if name.endswith("tokens")} == {
        "visual.tokens": (2, 4, pair[0].config.text_config.hidden_size), "0.tokens": (2, 3, 64), "1.tokens": (2, 3, 64),
    }  # fmt: skip
    shown = session._shown(QUESTION)
    assert (shown.slots, shown.times) == ([(0, 279, 3)], [(0.0, 279.0)])
    assert "Frame1-280" in session._lines.text(shown)
    former, constant, banks = part_of(pair[0]), torch.randn(4, pair[0].config.text_config.hidden_size), None
    for _ in range(20):
        _, banks = read_slot(former, banks, Bank.of(constant, 0, 3, 0, 3), 2)
    torch.testing.assert_close(banks.visual.tokens, constant.expand(2, -1, -1), atol=1e-6, rtol=1e-5)


def test_what_cannot_be_is_named(loaded, trained):
    for settings in ({"queries": 0}, {"layers": 0}, {"lengths": []}, {"lengths": [0]}, {"width": 40}):
        with pytest.raises(ValueError, match=r"model\.qformer: queries, layers and lengths of at least 1"):
            QFormerSettings(**settings)
    with pytest.raises(ValueError, match="reads with an adapter's qformer, which this model does not have"):
        StreamSession(*loaded["liteframe_internvl"], memories["qformer"](64))
    for held, asked in (("qformer", "summary"), ("summary", "qformer")):
        with pytest.raises(ValueError, match=f"was trained for memory '{held}', not for '{asked}'"):
            StreamSession(*trained[held]["liteframe_internvl"], memories[asked](4096))
