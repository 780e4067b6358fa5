"""The stages that train the tiny Video LLMs lay out their batches as the model's own processor and forward do."""

import copy

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from liteframe.models.teacher.huggingface import make_tower
from liteframe.models.vlm.chat import user_prompt
from liteframe.models.vlm.family import family_of
from liteframe.toyworld.language_pretrain import Packer, answer_loss
from liteframe.toyworld.model import IMAGENET_MEAN, IMAGENET_STD
from liteframe.toyworld.pretrain import BUILDERS, normalized
from liteframe.toyworld.questions import all_questions
from liteframe.toyworld.scenes import COLOURS, FPS, FRAMES, render, scene_for
from liteframe.toyworld.vision_pretrain import (
    COLOUR_NAMES,
    SHAPE_NAMES,
    PatchHeads,
    owners,
    patch_labels,
    view_batches,
)

LOOKS = {"internvl": (IMAGENET_MEAN, IMAGENET_STD), "qwen3_vl": ([0.5] * 3, [0.5] * 3)}


@pytest.fixture(scope="module", params=BUILDERS)
def tiny(request):
    torch.manual_seed(0)
    make_tokenizer, make_model, make_processor = BUILDERS[request.param]
    tokenizer = make_tokenizer()
    return make_model(tokenizer).eval(), make_processor(tokenizer)


def test_no_word_of_the_world_is_unknown(tiny):
    _, processor = tiny
    tokenizer = processor.tokenizer
    for index in range(60):
        for question in all_questions(scene_for(2, index)):
            ids = tokenizer(f"{question.text} {question.answer}")["input_ids"]
            assert tokenizer.unk_token_id not in ids


def test_packed_questions_equal_one_forward_each(tiny):
    """Answers, loss and layout against transformers' own processor and full forward pass, one question at a time."""
    model, processor = tiny
    mark = {"internvl": "<video>", "qwen3_vl": "<|video_pad|>"}[model.config.model_type]
    scenes = [scene_for(2, i) for i in range(2)]
    packer = Packer(model, processor, scenes, np.stack([owners(s) for s in scenes]), seed=0)
    batch = packer.draw(videos=2, frames=4, questions=3)
    pixels = np.stack([render(scenes[v])[batch.frames[b].numpy()] for b, v in enumerate(batch.video)])
    losses, rights = [], []
    with torch.inference_mode():
        for b, video in enumerate(batch.video):
            for pick in batch.order[b]:
                question = packer.questions[video][pick]
                prompt = user_prompt(f"{mark}\n{question.text}")
                indices = batch.frames[b].tolist()
                told = VideoMetadata(total_num_frames=FRAMES, fps=FPS, frames_indices=indices, duration=FRAMES / FPS)
                inputs = processor(
                    text=[f"{prompt}{question.answer}<|im_end|>"], videos=[pixels[b].transpose(0, 3, 1, 2)],
                    video_metadata=[told], do_sample_frames=False, return_tensors="pt",
                )  # fmt: skip
                answer = 2  # one word and the end of the turn
                logits = model(**inputs).logits[0, -answer - 1 : -1]
                target = inputs["input_ids"][0, -answer:]
                losses.append(torch.nn.functional.cross_entropy(logits, target))
                rights.append(bool((logits.argmax(-1) == target).all()))
        frames = normalized(pixels, *LOOKS[model.config.model_type]).flatten(0, 1)
        tokens = packer.family.encode_frames(model, frames).unflatten(0, (2, -1)).flatten(1, 2)
        loss, _, right = answer_loss(model, tokens, batch)
    assert float(loss) == pytest.approx(float(torch.stack(losses).mean()), abs=2e-5)
    assert right.flatten().tolist() == rights


def test_patch_labels_match_the_pixels():
    scene = scene_for(2, 7)
    frame = scene.flash.first + 1
    view = [frame, frame + 20]  # the star is in the first alone
    colour, shape, centre = patch_labels(scene, view, owners(scene)[view])
    pixels = render(scene)[frame].astype(float)
    star = colour == 1 + COLOUR_NAMES.index(scene.flash.colour)
    assert star.any()
    assert (shape[star] == 1 + SHAPE_NAMES.index("star")).all()
    near = np.linalg.norm(pixels - np.array(COLOURS[scene.flash.colour]), axis=-1) < 60
    rows, columns = np.argwhere(near).mean(0)
    assert centre[star].mean(0) * 64 == pytest.approx([columns, rows] * 2, abs=2)
    assert (shape[colour == 0] == 0).all()


def test_words_of_image_tokens(tiny):
    """A token that mostly shows the star is named by the star's colour, as the pixels under it say."""
    model, processor = tiny
    pair = family_of(model.config.model_type).temporal_patch
    scenes = [scene_for(2, i) for i in range(20)]
    packer = Packer(model, processor, scenes, np.stack([owners(s) for s in scenes]), seed=0)
    batch = packer.draw(videos=20, frames=64, questions=1)
    checked = 0
    for b, video in enumerate(batch.video):
        flash = scenes[video].flash
        frame = render(scenes[video])[flash.first + 1].astype(float)
        names = batch.words[b, (flash.first + 1) // pair, ..., 0]
        near = np.linalg.norm(frame - np.array(COLOURS[flash.colour]), axis=-1) < 60
        share = near.reshape(4, 16, 4, 16).mean(axis=(1, 3))
        row, column = np.unravel_index(share.argmax(), share.shape)
        if share[row, column] > 0.35:
            checked += 1
            assert processor.tokenizer.convert_ids_to_tokens(int(names[row, column])) == flash.colour
    assert checked >= 5


def test_stage_one_learns(tiny):
    """A few steps on one batch bring every loss down, through the class token too, where there is one."""
    model = copy.deepcopy(tiny[0])
    torch.manual_seed(0)
    family = family_of(model.config.model_type)
    tower, heads = make_tower(family.parts(model).tower), PatchHeads(128, family.temporal_patch)
    tower.weigh_by("cls" if "cls" in tower.saliencies else "mean")
    scenes = [scene_for(2, i) for i in range(2)]
    videos, owner = np.stack([render(s) for s in scenes]), np.stack([owners(s) for s in scenes])
    frames, *labels = next(view_batches(videos, scenes, owner, 8, seed=0, frames=family.temporal_patch))
    assert frames.shape[1] == family.temporal_patch
    pixels = normalized(frames, *LOOKS[model.config.model_type])
    optimizer = torch.optim.AdamW([*tower.parameters(), *heads.parameters()], lr=1e-3)
    history = []
    for _ in range(12):
        seen = tower(pixels)
        query = None if seen.query is None else seen.query[:, 0]
        loss, figures = heads.losses(seen.patches[:, 0], query, *labels)
        optimizer.zero_grad()
        loss.backward()
        if query is not None:
            assert tower.model.embeddings.cls_token.grad.abs().sum() > 0
        optimizer.step()
        history.append(figures)
    for name in ("colour", "centre", "frame"):
        assert history[-1][name] < 0.8 * history[0][name]


def test_a_pair_tower_takes_whole_pairs(tiny):
    model, processor = tiny
    scene = scene_for(2, 0)
    packer = Packer(model, processor, [scene], owners(scene)[None], seed=0)
    if packer.family.temporal_patch == 1:
        assert packer.draw(1, 3, 1).words.shape[1] == 3
        return
    with pytest.raises(ValueError, match="3 frames are no whole views of 2 frames"):
        packer.draw(1, 3, 1)
