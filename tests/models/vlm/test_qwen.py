"""Video LLMs of the Qwen-VL kind with other encoders: positions, prompts and answers against transformers' models."""

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata
from worlds.students import make_student, student_config
from worlds.vlms import make_qwen2_5_vl, make_qwen3_5, make_qwen3_vl

from liteframe.answer.key_values import PROTOTYPE
from liteframe.answer.memory import memories
from liteframe.answer.positions import Compact, Keep, Time
from liteframe.answer.session import StreamSession
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.mrope import Mrope
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher

MAKERS = {
    "qwen2_5_vl": make_qwen2_5_vl,
    "qwen3_vl": lambda folder: make_qwen3_vl(folder, deepstack=()),
    "qwen3_5": make_qwen3_5,
}
QUESTION = "Which way does the red circle move?"
FRAMES = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
CLIP_STATISTICS = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
HALVES = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}


@pytest.fixture(scope="module", params=MAKERS)
def world(request, tmp_path_factory):
    """Kind, folder, transformers' model and its processor."""
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "vlm")
    return request.param, folder, *load_video_llm(folder)


@pytest.fixture(scope="module")
def swapped(world):
    """The model with a student in place of its tower, and the processor that fits."""
    kind, folder, *_ = world
    statistics = CLIP_STATISTICS if kind == "qwen2_5_vl" else HALVES
    config = student_config(
        image_size=64, teacher_dim=32, depth=2, downsample={1: (2, 2, 2), 2: (2, 1, 1)}, **statistics
    )
    return load_video_llm(folder, encoder=make_student(config, seed=1))


def dense(world):
    """transformers' model with its own tower's features through our model class: every pair a slot."""
    kind, folder, vlm, processor = world
    statistics = CLIP_STATISTICS if kind == "qwen2_5_vl" else HALVES
    config = LiteFrameConfig(
        dim=16, depth=2, heads=2, mlp_dim=32, patch_size=8, image_size=64, teacher_dim=32, clip_frames=4,
        downsample={1: (2, 1, 1)}, **statistics,
    )  # fmt: skip
    encoder = PooledEncoder(PooledTeacher(load_teacher(str(folder)), (2, 1, 1)))
    model = attach_encoder(vlm, encoder, config=config)
    return model.eval(), processor_for(processor, model.config)


def test_the_dense_tower_through_our_classes_is_transformers_own_model(world):
    kind, _, vlm, theirs = world
    model, ours = dense(world)
    # Pairs a second apart: transformers 5.17 counts whole seconds of a pair.
    told = [VideoMetadata(total_num_frames=10, fps=2.0, frames_indices=list(range(10)), duration=5.0)]
    given = {"video_metadata": told, "do_sample_frames": False, "return_tensors": "pt"}
    text = "<|im_start|>user\n{}\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    mark = "<|video_pad|>" if kind != "qwen2_5_vl" else "<|vision_start|><|video_pad|><|vision_end|>"
    expected = theirs(text=text.format(mark), videos=[FRAMES.transpose(0, 3, 1, 2)], **given)
    found = ours(text=text.format("<video>"), videos=[FRAMES], **given)
    pads = theirs.tokenizer.convert_tokens_to_ids(["<|video_pad|>", "<|image_pad|>"])
    assert torch.equal(expected["input_ids"].where(expected["input_ids"] != pads[0], pads[1]), found["input_ids"])
    assert int((found["input_ids"] == pads[1]).sum()) == 5 * 16
    with torch.inference_mode():
        logits = vlm(**expected).logits
        torch.testing.assert_close(model(**found).logits, logits, rtol=1e-4, atol=1e-4)
        assert logits.std() > 0.1
        settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
        length = found["input_ids"].shape[1]
        answers = [m.generate(**i, **settings)[0, length:] for m, i in ((vlm, expected), (model, found))]
    assert torch.equal(*answers)


def test_positions_are_those_of_transformers(world):
    """With padding, a second row, and a video of which each slot is a pair."""
    kind, _, vlm, _ = world
    _, ours = dense(world)
    videos = [FRAMES, FRAMES[:6]]
    told = [
        VideoMetadata(total_num_frames=40, fps=8.0, frames_indices=list(range(0, 4 * len(video), 4)))
        for video in videos
    ]
    batch = ours(text=["<video> Which?", "Look : <video> and Which colour ?"], videos=videos, video_metadata=told)
    kinds = 2 * (batch["input_ids"] == ours.image_token_id).int()
    grids = torch.tensor([[5, 8, 8], [3, 8, 8]])
    seconds = {"second_per_grid_ts": torch.tensor([1.0, 1.0])} if kind == "qwen2_5_vl" else {}
    expected, _ = vlm.model.get_rope_index(
        input_ids=batch["input_ids"], mm_token_type_ids=kinds, video_grid_thw=grids,
        attention_mask=batch["attention_mask"], **seconds,
    )  # fmt: skip
    assert batch["attention_mask"].min() == 0
    assert torch.equal(batch["position_ids"], expected)
    assert torch.equal(batch["position_ids"], batch["position_ids"].clamp_min(0))


def test_times_reach_positions_or_words(world, swapped):
    """The same frames at another rate stand elsewhere on the time axis, or behind other times."""
    kind, *_ = world
    _, processor = swapped
    by_rate = []
    for fps in (1.0, 2.0):
        told = [VideoMetadata(total_num_frames=10, fps=fps, frames_indices=list(range(10)))]
        by_rate.append(processor(text="<video>", videos=[FRAMES], video_metadata=told))
    slow, fast = by_rate
    if kind == "qwen2_5_vl":
        at = [batch["position_ids"][0, 0, 1:-1].unique().tolist() for batch in by_rate]
        assert at == [[1, 9, 17], [1, 5, 9]]  # 2 positions a second, slots of 4 and of 2 s, after one mark
        assert torch.equal(slow["input_ids"], fast["input_ids"])
    else:
        words = [processor.shown_video(10, 64, 64, [i / fps for i in range(10)]).text for fps in (1.0, 2.0)]
        times = [[part.split("<")[-1] for part in text.split(" seconds>")[:-1]] for text in words]
        assert times == [["1.5", "5.5", "8.5"], ["0.8", "2.8", "4.2"]]
        assert torch.equal(slow["position_ids"][0], fast["position_ids"][0])


def test_a_session_answers_as_generate_does_however_it_reads(swapped, tmp_path):
    """All at once, in parts, prefilled, saved and continued: the answer of the processor's own prompt."""
    model, processor = swapped
    told = [VideoMetadata(total_num_frames=10, fps=2.0, frames_indices=list(range(10)))]
    inputs = processor(text=question_prompt(QUESTION), videos=[FRAMES], video_metadata=told)
    times = [i / 2 for i in range(10)]
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].log_softmax(-1)
    words = ["left", "right", "up", "down"]
    expected = logits[[processor.tokenizer(word)["input_ids"][0] for word in words]]
    whole, parts, early = (StreamSession(model, processor, fps=2.0, prefill=read) for read in (False, False, True))
    whole.add(FRAMES, times)
    for session in (parts, early):
        for part in (slice(0, 3), slice(3, 7), slice(7, 10)):
            session.add(FRAMES[part], times[part])
    parts.save(tmp_path / "session.safetensors")
    again = StreamSession(model, processor, fps=2.0)
    again.load(tmp_path / "session.safetensors")
    fork = early.fork()
    for session in (whole, parts, early, again, fork, early):
        torch.testing.assert_close(session.score(QUESTION, words), expected, rtol=1e-4, atol=1e-4)
    answers = {session.ask(QUESTION, max_new_tokens=6).text for session in (whole, early, again, fork)}
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    assert answers == {processor.tokenizer.decode(generated, skip_special_tokens=True).strip()}


def test_a_plain_model_answers_as_transformers_does(world):
    kind, _, model, processor = world
    told = [VideoMetadata(total_num_frames=10, fps=2.0, frames_indices=list(range(10)))]
    mark = "<|video_pad|>" if kind != "qwen2_5_vl" else "<|vision_start|><|video_pad|><|vision_end|>"
    inputs = processor(
        text=question_prompt(QUESTION).replace("<video>", mark), videos=[FRAMES.transpose(0, 3, 1, 2)],
        video_metadata=told, do_sample_frames=False, return_tensors="pt",
    )  # fmt: skip
    session = StreamSession(model, processor, fps=2.0)
    session.add(FRAMES, [i / 2 for i in range(10)])
    ends = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=ends)
    expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert session.ask(QUESTION, max_new_tokens=6).text == expected


def test_another_rate_on_the_time_axis(world, swapped):
    kind, *_ = world
    model, processor = swapped
    if kind != "qwen2_5_vl":
        with pytest.raises(ValueError, match=rf"Time.*of a liteframe_{kind} does not do; use labels='seconds'"):
            StreamSession(model, processor, positions=Time(8.0))
        return
    inputs = processor(text=question_prompt("Why?"), videos=[FRAMES])
    faster = Mrope(8.0).places(processor.slots(10, 64, 64), (2, 2))
    inputs["position_ids"] = Mrope(8.0).position_ids(inputs["input_ids"][0] == processor.image_token_id, faster)[
        :, None
    ]
    with torch.inference_mode():
        expected = model(**inputs).logits[0, -1].log_softmax(-1)[processor.tokenizer("a")["input_ids"]]
    scores = []
    for positions in (Time(8.0), Keep()):
        session = StreamSession(model, processor, positions=positions)
        session.add(FRAMES)
        scores.append(session.score("Why?", ["a"]))
    torch.testing.assert_close(scores[0], expected, rtol=1e-4, atol=1e-4)
    assert (scores[0] - scores[1]).abs() > 1e-3


def test_what_counts_on_three_axes_is_told_or_refused(world, swapped):
    kind, *_ = world
    model, processor = swapped
    if kind == "qwen3_5":
        with pytest.raises(
            ValueError, match=r"'sink_window' needs .* which linear_attention of .* take a memory of to"
        ):
            StreamSession(model, processor, memories["sink_window"](64))
        with pytest.raises(ValueError, match=r"'clips' with selector='attention' .* take selector='embed'"):
            StreamSession(model, processor, memories["clips"](64))
    else:
        with pytest.raises(ValueError, match=r"Compact.* on one axis, and those of a liteframe_qwen.* have three"):
            StreamSession(model, processor, memories["sink_window"](64), positions=Compact())
    inputs = processor(text="<video>Which?", videos=[FRAMES])
    del inputs["position_ids"]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"position_ids \[3,B,L\] are missing"):
            call(**inputs)
    assert model(input_ids=inputs["input_ids"][:, -5:]).logits.shape[1] == 5


def test_a_video_fits_its_window_of_tokens(swapped):
    """A memory that drops old slots shows the rest where their times put them."""
    model, processor = swapped
    session = StreamSession(model, processor, memories["window"](8), fps=2.0)
    session.add(FRAMES, [i / 2 for i in range(10)])
    shown = session._shown("")
    assert [slot[:2] for slot in shown.slots] == [(4, 7), (8, 9)]
    ids = [1, *[processor.image_token_id] * 8, 2]
    positions = session._lines.position_ids(ids, shown)
    if processor.mrope.tokens_per_second is None:
        assert positions[0, 0].tolist() == [0, *[1] * 8, 3]
    else:  # 2 positions a second, slots at 2 s and 4 s
        assert positions[0, 0].tolist() == [0, *[1] * 4, *[5] * 4, 3]
    assert torch.isfinite(session.score("Why?", ["a"])).all()


def test_entries_that_are_kept_stand_where_they_were_read(world, swapped):
    """The last two slots behind the text: one pass of the prompt with a mask, at the processor's own positions."""
    if world[0] == "qwen3_5":
        return  # refused
    model, processor = swapped
    session = StreamSession(model, processor, memories["sink_window"](8), fps=2.0)
    session.add(FRAMES, [i / 2 for i in range(10)])
    told = [VideoMetadata(total_num_frames=10, fps=2.0, frames_indices=list(range(10)))]
    inputs = processor(text=question_prompt(QUESTION), videos=[FRAMES], video_metadata=told)
    ids, start = inputs["input_ids"][0], processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")
    pads = (ids == processor.image_token_id).nonzero()[:, 0]
    first, last = int(pads[0]), int(pads[-1])
    if world[0] == "qwen3_vl":  # what stands around the oldest slot goes with it
        first, gone = int((ids == processor.tokenizer("<")["input_ids"][0]).nonzero()[0]), int(pads[3]) + 2
        last += 1  # the mark behind the newest was read with it
    else:
        gone = int(pads[3]) + 1
        assert int(ids[first - 1]) == start
    seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    seen[last + 1 :, first:gone] = False
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(ids[None])
        embeddings[0, pads] = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
        blocked = torch.full(seen.shape, torch.finfo(torch.float32).min).masked_fill(seen, 0.0)[None, None]
        given = {"inputs_embeds": embeddings, "attention_mask": blocked, "position_ids": inputs["position_ids"]}
        logits = model.lm_head(model.model.language_model(**given).last_hidden_state)[0, -1].log_softmax(-1)
    expected = logits[[processor.tokenizer(word)["input_ids"][0] for word in ("left", "right")]]
    torch.testing.assert_close(session.score(QUESTION, ["left", "right"]), expected, rtol=1e-4, atol=1e-4)
    assert session.ask(QUESTION, max_new_tokens=3).tokens == 8


def test_rotation_on_three_axes_is_undone(world, swapped):
    """Keys before rotation are what the first layer's projection makes; a mean of some is rotated to their first."""
    if world[0] == "qwen3_5":
        return
    model, processor = swapped
    layer, made = model.model.language_model.layers[0].self_attn, []
    last = getattr(layer, "k_norm", layer.k_proj)
    hook = last.register_forward_hook(lambda *call: made.append(call[-1][0].reshape(-1, 32)))
    session = StreamSession(model, processor, memories["bilevel"](64, pool=2, chosen=1, slots_per_block=1), fps=2.0)
    session.add(np.concatenate([FRAMES[:8]] * 2), [i / 2 for i in range(16)])
    hook.remove()
    past = session.memory._past
    torch.testing.assert_close(past.keys(0)[0], torch.cat(made), rtol=1e-4, atol=1e-5)
    view = session.memory.context(QUESTION)
    merged = view.kind[0] == PROTOTYPE
    groups = (past.slot[0] == view.slot[0, merged][0]) & (past.place[0] >= 0)
    means = past.keys(0)[0, groups].view(2, 2, -1).mean(1)
    torch.testing.assert_close(view.keys(0)[0, merged], means, rtol=1e-4, atol=1e-5)
    assert torch.equal(view.axes[:, 0, merged], past.axes[:, 0, groups][:, ::2])
