"""What every memory keeps to, whatever it forgets: a memory is tested here by being registered."""

import copy

import pytest
import torch
from worlds.vlms import TRAINED

from liteframe import StreamSession, memories
from liteframe.answer.key_values import KeyValues
from liteframe.models.vlm.chat import question_prompt

QUESTION = "Which way does the red object move?"
WORDS = ["red", "left", "circle", "square"]
# Settings with a budget that the stream exceeds, and with one that it does not.
PLAIN = ("window", "halving", "random", "sink_window", "bank")
SMALL = {
    "all": {},
    **{name: {"budget": 12} for name in (*PLAIN, "saliency")},
    "clips": {"budget": 16, "slots_per_clip": 2, "chosen": 1},
    "bilevel": {"budget": 20, "slots_per_block": 1, "chosen": 1, "pool": 2},
    "summary": {"budget": 14, "segments": 2, "ratio": 2},
    "learned_clips": {"budget": 16, "chosen": 1},
    "qformer": {"budget": 12},
}
ROOMY = {
    "all": {},
    **{name: {"budget": 4096} for name in PLAIN},
    "saliency": {"budget": 4096, "threshold": None},
    "clips": {"budget": 4096, "chosen": 100, "pool": False},
    "bilevel": {"budget": 4096, "chosen": 100},
    "summary": {"budget": 4096, "segments": 16},
    "learned_clips": {"budget": 4096, "chosen": 100},
}


with_prefill = pytest.mark.parametrize(
    ("name", "prefill"), [*((name, False) for name in sorted(memories)), ("all", True)]
)


@pytest.fixture(params=sorted(memories))
def name(request):
    return request.param


@pytest.fixture
def pairs(name, loaded, trained):
    """kind -> model and processor that the memory reads with."""
    return trained[name] if memories[name].trained else loaded


@pytest.fixture
def start(name, pairs):
    """A new session with a small or a roomy memory."""
    pair = pairs["liteframe_internvl"]
    return lambda settings=SMALL, **options: StreamSession(*pair, memories[name](**settings[name]), **options)


def state(session):
    """All that a session remembers."""
    return {name: tensor.clone() for name, tensor in {**session.memory.state(), **session._intake.state()[1]}.items()}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **tolerance)


EXACTLY = {"atol": 0, "rtol": 0}


def test_bounded(start, video, name):
    session = start()
    budget = getattr(session.memory, "budget", None)
    slots = 0
    for _ in range(10):
        session.add(video[:16])
        slots += 4
        assert session.size().tokens <= (4 * slots if budget is None else budget)
    if budget is None:
        assert session.size().tokens == 4 * slots


@pytest.mark.parametrize("name", sorted(set(memories) - {"all"}))
def test_a_budget_below_one_slot_is_refused(name, pairs):
    with pytest.raises(ValueError, match="a budget of 0 tokens keeps nothing; give"):
        memories[name](0)
    for pair in pairs.values():
        with pytest.raises(ValueError, match=r"a budget of 3 tokens .* one slot of this model, which has \d+; give"):
            StreamSession(*pair, memories[name](3))


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in ("llava_onevision", "qwen2_5_vl", "qwen3_vl")),
        *((family, torch.bfloat16) for family in ("internvl", "llava_onevision", "qwen2_5_vl", "qwen3_vl")),
    ],
)
def test_other_families_and_bfloat16(name, pairs, loaded, video, tmp_path, family, dtype):
    """In short: bounded, read-only, causal, saved and forked without a trace, exact where all fits."""
    if family not in "".join(pairs):
        with pytest.raises(ValueError, match=r"positions of a liteframe_qwen\w+ have three|need a language model of"):
            StreamSession(*TRAINED[name](loaded[f"liteframe_{family}"]), memories[name](**SMALL[name]))
        return
    (model, processor), (plain, _) = pairs[f"liteframe_{family}"], loaded[f"liteframe_{family}"]
    model, plain = (copy.deepcopy(one).to(dtype) for one in (model, plain))
    slot = processor.tokens_per_slot(*processor.frame_size)

    def session(settings):
        budget = {"budget": settings["budget"] * slot // 4} if "budget" in settings else {}
        return StreamSession(model, processor, memories[name](**{**settings, **budget}))

    small = session(SMALL[name])
    small.add(video[:21])
    before, scores = state(small), small.score(QUESTION, WORDS)
    small.fork().add(video[21:])
    small.ask(QUESTION, max_new_tokens=2)
    assert_same(state(small), before, **EXACTLY)
    assert small.memory.budget is None or small.size().tokens <= small.memory.budget
    small.save(tmp_path / "saved")
    other = session(SMALL[name])
    other.load(tmp_path / "saved")
    assert torch.equal(other.score(QUESTION, WORDS), scores)
    for one in (small, other):
        one.add(video[21:])
    assert_same(state(small), state(other), **EXACTLY)
    if not memories[name].lossless:
        return
    roomy, whole = session(ROOMY[name]), StreamSession(plain, processor)
    for one in (roomy, whole):
        one.add(video)
    near = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0}
    torch.testing.assert_close(roomy.score(QUESTION, WORDS), whole.score(QUESTION, WORDS), **near)


def test_asking_changes_nothing(start, video):
    session = start()
    session.add(video)
    before = state(session)
    first = session.ask(QUESTION, max_new_tokens=5)
    second = session.score("What shape is the object?", WORDS[2:])
    together = session.score_all([(QUESTION, WORDS), ("What shape is the object?", WORDS[2:])])
    torch.testing.assert_close(together, [session.score(QUESTION, WORDS), second], atol=1e-4, rtol=1e-4)
    assert session.ask(QUESTION, max_new_tokens=5) == first
    assert_same(state(session), before, **EXACTLY)


def test_later_frames_are_not_known_earlier(start, video):
    session = start()
    session.add(video[:13])
    before = session.score(QUESTION, WORDS)
    session.fork().add(video[13:])
    assert torch.equal(session.score(QUESTION, WORDS), before)
    fresh = start()
    fresh.add(video[:13])
    assert torch.equal(fresh.score(QUESTION, WORDS), before)


@pytest.mark.parametrize(
    ("name", "count"), [(name, count) for name in sorted(memories) if memories[name].lossless for count in (27, 3)]
)
def test_a_roomy_memory_shows_the_whole_prompt(start, video, liteframe_vlm, count):
    model, processor = liteframe_vlm
    inputs = processor(text=question_prompt(QUESTION), videos=[video[:count]], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].log_softmax(-1)
    session = start(ROOMY)
    session.add(video[:count])
    expected = logits[processor.tokenizer.convert_tokens_to_ids(WORDS)]
    torch.testing.assert_close(session.score(QUESTION, WORDS), expected, atol=1e-3, rtol=1e-4)
    shown = session._shown(QUESTION)
    if isinstance(shown, KeyValues):
        return
    assert processor.video_text(shown.slots) == processor.video_text(processor.slots(count, *processor.frame_size))


def test_pieces_in_which_frames_come_leave_no_trace(start, video):
    at_once, one_by_one = start(), start()
    at_once.add(video)
    for frame in video:
        one_by_one.add(frame[None])
    assert_same(state(at_once), state(one_by_one), atol=1e-4, rtol=1e-4)


def test_what_is_shown_is_in_order(start, video):
    session = start()
    for _ in range(5):
        session.add(video[:8])
    session.add(video[:3])
    shown = session._shown(QUESTION)
    if isinstance(shown, KeyValues):
        assert (shown.positions.diff() >= 0).all()
        assert (shown.slot.diff() >= 0).all()
        assert (shown.slot[:, -1] == 10).all()
        return
    assert (shown.frame.diff() >= 0).all()
    firsts, lasts, counts = zip(*shown.slots, strict=True)
    assert list(firsts) == sorted(set(firsts))
    assert all(first <= last < session.frames for first, last in zip(firsts, lasts, strict=True))
    for own, first, last in zip(shown.frame.split(counts), firsts, lasts, strict=True):
        assert ((first <= own) & (own <= last)).all()


@with_prefill
@pytest.mark.parametrize("way", ["save", "fork"])
def test_goes_on_after_save_or_fork_as_without(start, video, tmp_path, way, prefill):
    session = start(prefill=prefill)
    session.add(video[:13], [float(second) for second in range(13)])
    if way == "save":
        session.save(tmp_path / "session.safetensors")
        other = start(prefill=session.prefill)
        other.add(video[::-1])
        other.load(tmp_path / "session.safetensors")
    else:
        other = session.fork()
    assert_same(state(other), state(session), **EXACTLY)
    for one in (session, other):
        one.add(video[13:], [13 + second / 2 for second in range(14)])
    assert_same(state(other), state(session), **EXACTLY)
    assert other.frames == session.frames == 20
    torch.testing.assert_close(other.score(QUESTION, WORDS), session.score(QUESTION, WORDS), atol=1e-4, rtol=1e-4)


@with_prefill
def test_forks_do_not_leak(start, video, prefill):
    session, alone = (start(prefill=prefill) for _ in range(2))
    for one in (session, alone):
        one.add(video[:13])
    for fork, frames in ((session.fork(), video[13:]), (session.fork(), 255 - video)):
        fork.add(frames)
        fork.ask(QUESTION, max_new_tokens=3)
    assert_same(state(session), state(alone), **EXACTLY)
    for one in (session, alone):
        one.add(video[13:])
    assert_same(state(session), state(alone), **EXACTLY)
    assert torch.equal(session.score(QUESTION, WORDS), alone.score(QUESTION, WORDS))


def test_empty(start, video):
    session = start()
    assert session.memory.context(QUESTION) is None
    assert session.memory.state() == {}
    bare = session.score(QUESTION, WORDS)
    session.add(video[:1])
    assert session.memory.state() == {}
    assert not torch.allclose(session.score(QUESTION, WORDS), bare)
    session.add(video)
    session.reset()
    assert session.memory.state() == {}
    assert torch.equal(session.score(QUESTION, WORDS), bare)
