"""Features of inner blocks (deepstack) beside those of the last one, from Qwen3-VL's tower to its language model."""

import numpy as np
import pytest
import torch
from liteframe_serving.served import ServedVision
from transformers.video_utils import VideoMetadata
from worlds.exports import HALVES
from worlds.students import make_student, student_config
from worlds.vlms import make_qwen3_vl

from liteframe.answer.memory import memories
from liteframe.answer.session import StreamSession
from liteframe.distill.losses import token_losses
from liteframe.distill.objectives import make_objective
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.student_init import build_student, unfold_head, with_preprocessing
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm
from liteframe.models.vlm.pair_tower import patchified
from liteframe.reduce.pooled_teacher import PooledEncoder, PooledTeacher

FRAMES = np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)
TOLD = [VideoMetadata(total_num_frames=10, fps=2.0, frames_indices=list(range(10)), duration=5.0)]
SETTINGS = {"do_sample": False, "max_new_tokens": 6}
HEADS = [slice(0, 32), slice(32, 64), slice(64, 96)]
WORDS = ["left", "right", "up", "down"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tower of three blocks of 32 channels, of which the language model reads the first two beside the last."""
    return make_qwen3_vl(tmp_path_factory.mktemp("deepstack") / "vlm", deepstack=(0, 1), depth=3)


@pytest.fixture(scope="module")
def teacher(folder):
    return load_teacher(str(folder), deepstack=True)


@pytest.fixture(scope="module")
def swapped(folder):
    encoder = make_student(student_config(teacher_dim=96, deepstack=2, depth=2, **HALVES), seed=1)
    return load_video_llm(folder, encoder=encoder)


def test_projected_taps_are_what_the_tower_gives_its_language_model(teacher):
    video = torch.randn(1, 4, 3, 64, 32)
    features, tower = teacher(video), teacher.tower.model
    assert (teacher.dim, teacher.deepstack, features.patches.shape) == (96, 2, (1, 2, 8, 4, 96))
    with torch.no_grad():
        pixels, grid = patchified(video, tower.config)
        output = tower(pixels, grid_thw=grid)
        found = teacher.projector(features.patches).flatten(0, 3)
    assert torch.equal(found, torch.cat([output.pooler_output, *output.deepstack_features], -1))
    plain = load_teacher(teacher.name)(video)
    assert torch.equal(plain.patches, features.patches[..., :32])
    assert torch.equal(plain.logits, features.logits)


def test_the_dense_tower_through_our_classes_is_transformers_own_model(folder, teacher):
    vlm, theirs = load_video_llm(folder)
    config = LiteFrameConfig(
        dim=16, depth=2, heads=2, patch_size=8, image_size=64, teacher_dim=96, deepstack=2, clip_frames=4,
        downsample={1: (2, 1, 1)}, **HALVES,
    )  # fmt: skip
    text = "<|im_start|>user\n{}\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    expected = theirs(
        text=text.format("<|video_pad|>"), videos=[FRAMES.transpose(0, 3, 1, 2)], video_metadata=TOLD,
        do_sample_frames=False, return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        logits, answer = vlm(**expected).logits, vlm.generate(**expected, **SETTINGS, eos_token_id=None)
        model = attach_encoder(vlm, PooledEncoder(PooledTeacher(teacher, (2, 1, 1))), config=config).eval()
        found = processor_for(theirs, model.config)(text=text.format("<video>"), videos=[FRAMES], video_metadata=TOLD)
        torch.testing.assert_close(model(**found).logits, logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.generate(**found, **SETTINGS, eos_token_id=None)[:, -6:], answer[:, -6:])
        features = model.model.get_video_features(found["pixel_values_videos"]).pooler_output[0]
        features[:, 64:] = 0  # of the last block alone
        narrow = model(
            input_ids=found["input_ids"], position_ids=found["position_ids"],
            mm_encoder_outputs={"video": type("Ready", (), {"pooler_output": [features]})},
        ).logits  # fmt: skip
    assert (narrow - logits).abs().max() > 1e-2


def test_a_session_reads_transformers_own_model_as_it_reads_itself(folder):
    vlm, processor = load_video_llm(folder)
    text = "<|im_start|>user\n<|video_pad|>\nWhich colour?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(
        text=text, videos=[FRAMES.transpose(0, 3, 1, 2)], video_metadata=TOLD, do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        logits = vlm(**inputs).logits[0, -1].log_softmax(-1)
    expected = logits[[processor.tokenizer(word)["input_ids"][0] for word in WORDS]]
    for prefill in (False, True):
        session = StreamSession(vlm, processor, fps=2.0, prefill=prefill)
        session.add(FRAMES)
        torch.testing.assert_close(session.score("Which colour?", WORDS), expected, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(vlm(**inputs).logits[0, -1].log_softmax(-1), logits)  # as before


def test_a_session_reads_them_as_generate_does_with_the_memories(swapped):
    model, processor = swapped
    inputs = processor(text=question_prompt("Which colour?"), videos=[FRAMES], video_metadata=TOLD)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].log_softmax(-1)
        generated = model.generate(**inputs, **SETTINGS)[0, inputs["input_ids"].shape[1] :]
    expected = logits[[processor.tokenizer(word)["input_ids"][0] for word in WORDS]]
    for memory, prefill in (
        (None, False),
        (None, True),
        (memories["window"](64), False),
        (memories["sink_window"](64), False),
    ):
        session = StreamSession(model, processor, memory, fps=2.0, prefill=prefill)
        for part in (slice(0, 7), slice(7, 10)):
            session.add(FRAMES[part], [number / 2 for number in range(10)][part])
        torch.testing.assert_close(session.score("Which colour?", WORDS), expected, rtol=1e-4, atol=1e-4)
    answer = session.ask("Which colour?", max_new_tokens=6).text
    assert answer == processor.tokenizer.decode(generated, skip_special_tokens=True).strip()


def test_steps_of_distillation_lower_the_loss_of_each_head(teacher):
    config = with_preprocessing(student_config(teacher_dim=96, depth=2, dim=16, mlp_dim=32), teacher)
    assert config.deepstack == 2
    video = torch.randn(2, 8, 3, 64, 64)
    pooled, running = PooledTeacher(teacher)(video), RunningStatistics(teacher.dim)
    objective = make_objective("ctd", teacher.dim, TargetSettings(), "mse", config)
    running.update(pooled.tokens.flatten(0, -2))
    objective.fit(running.freeze())
    student, _ = build_student(config, teacher, "weight_selection", None)
    assert student.head.weight[32:].abs().max() == 0
    unfold_head(student.head, objective.normalizer.standardizer)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    target, losses = objective.targets(pooled.tokens, pooled.slots), []
    for _ in range(15):
        tokens = student(video)
        loss = objective.loss(tokens, target).per_clip.mean()
        by_head = [(tokens[..., head], target.values[..., head]) for head in HEADS]
        losses.append(torch.stack([token_losses(*pair, "mse").mean() for pair in by_head]).detach())
        torch.testing.assert_close(loss.detach(), losses[-1].mean())  # equal weights
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (losses[-1] < 0.95 * losses[0]).all()
    cosines = [
        torch.cosine_similarity(objective.raw(tokens)[..., part], target.raw[..., part], dim=-1).mean()
        for part in HEADS
    ]
    torch.testing.assert_close(objective.figures(tokens, target)["cosine"], torch.stack(cosines).mean().detach())


def test_what_has_no_deepstack_says_so(folder, tmp_path, swapped):
    plain = make_qwen3_vl(tmp_path / "plain", deepstack=())
    with pytest.raises(ValueError, match="qwen3_vl_vision tower that gives its language model features of no inner"):
        load_teacher(str(plain), deepstack=True)
    with pytest.raises(ValueError, match="deepstack is for towers of Qwen3-VL, not for timm/vit_tiny"):
        load_teacher("timm/vit_tiny_patch16_224", deepstack=True)
    with pytest.raises(ValueError, match="deepstack is for towers of Qwen3-VL, not of a internvl_vision"):
        load_teacher("toyworld", deepstack=True)
    wide = student_config(teacher_dim=64, deepstack=1, **HALVES)
    with pytest.raises(ValueError, match=r"of 1 inner blocks \(deepstack\), and the language model reads those of 2"):
        load_video_llm(folder, encoder=make_student(wide))
    with pytest.raises(ValueError, match="deepstack=2 must be a number of blocks"):
        student_config(teacher_dim=64, deepstack=2)
    with pytest.raises(ValueError, match="knows no deepstack"):
        make_objective("rtd", 64, TargetSettings(), "mse", wide)
    with pytest.raises(ValueError, match="which servers are not given"):
        ServedVision().add_vision(swapped[0].config)
