"""The stages that train the tiny InternVL lay out their batches as the model's own processor and forward do."""

import numpy as np
import pytest
import torch

from liteframe.toyworld.language_pretrain import Packer, answer_loss
from liteframe.toyworld.model import build_model, build_processor, build_tokenizer
from liteframe.toyworld.questions import all_questions
from liteframe.toyworld.scenes import COLOURS, render, scene_for
from liteframe.toyworld.vision_pretrain import (
    COLOUR_NAMES,
    GRID,
    SHAPE_NAMES,
    PatchHeads,
    frame_batches,
    owners,
    patch_labels,
)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    return build_model(tokenizer).eval(), build_processor(tokenizer)


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
    scenes = [scene_for(2, i) for i in range(2)]
    packer = Packer(processor.tokenizer, scenes, np.stack([owners(s) for s in scenes]), seed=0)
    batch = packer.draw(videos=2, frames=3, questions=4)
    pixels = [render(scenes[v])[batch.frames[b].numpy()] for b, v in enumerate(batch.video)]
    losses, rights = [], []
    patches = []
    with torch.inference_mode():
        for b, video in enumerate(batch.video):
            for pick in batch.order[b]:
                question = packer.questions[video][pick]
                prompt = processor.apply_chat_template(
                    [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question.text}]}],
                    add_generation_prompt=True,
                )
                inputs = processor(
                    text=[f"{prompt}{question.answer}<|im_end|>"], videos=[pixels[b]], return_tensors="pt"
                )
                answer = 2  # one word and the end of the turn
                logits = model(**inputs).logits[0, -answer - 1 : -1]
                target = inputs["input_ids"][0, -answer:]
                losses.append(torch.nn.functional.cross_entropy(logits, target))
                rights.append(bool((logits.argmax(-1) == target).all()))
            tokens = model.model.vision_tower(pixel_values=inputs["pixel_values"]).last_hidden_state[:, 1:]
            patches.append(tokens.unflatten(1, (GRID, GRID)))
        loss, _, right = answer_loss(model, torch.stack(patches), batch)
    assert float(loss) == pytest.approx(float(torch.stack(losses).mean()), abs=2e-5)
    assert right.flatten().tolist() == rights


def test_patch_labels_match_the_pixels():
    scene = scene_for(2, 7)
    frame = scene.flash.first + 1
    colour, shape, centre = patch_labels(scene, frame, owners(scene)[frame])
    pixels = render(scene)[frame].astype(float)
    star = colour == 1 + COLOUR_NAMES.index(scene.flash.colour)
    assert star.any()
    assert (shape[star] == 1 + SHAPE_NAMES.index("star")).all()
    near = np.linalg.norm(pixels - np.array(COLOURS[scene.flash.colour]), axis=-1) < 60
    rows, columns = np.argwhere(near).mean(0)
    assert centre[star].mean(0) * 64 == pytest.approx([columns, rows], abs=2)
    assert (shape[colour == 0] == 0).all()


def test_words_of_image_tokens(tiny):
    """A token that mostly shows the star is named by the star's colour, as the pixels under it say."""
    _, processor = tiny
    scenes = [scene_for(2, i) for i in range(20)]
    packer = Packer(processor.tokenizer, scenes, np.stack([owners(s) for s in scenes]), seed=0)
    batch = packer.draw(videos=20, frames=64, questions=1)
    checked = 0
    for b, video in enumerate(batch.video):
        flash = scenes[video].flash
        frame = render(scenes[video])[flash.first + 1].astype(float)
        names = batch.words[b, flash.first + 1, ..., 0]
        near = np.linalg.norm(frame - np.array(COLOURS[flash.colour]), axis=-1) < 60
        share = near.reshape(4, 16, 4, 16).mean(axis=(1, 3))
        row, column = np.unravel_index(share.argmax(), share.shape)
        if share[row, column] > 0.35:
            checked += 1
            assert processor.tokenizer.convert_ids_to_tokens(int(names[row, column])) == flash.colour
    assert checked >= 5


def test_stage_one_learns(tiny):
    """A few steps on one batch bring every loss down, through the class token too."""
    torch.manual_seed(0)
    model = build_model(build_tokenizer())
    vit, heads = model.model.vision_tower, PatchHeads(128)
    scenes = [scene_for(2, i) for i in range(2)]
    frames, *labels = next(
        frame_batches(np.stack([render(s) for s in scenes]), scenes, np.stack([owners(s) for s in scenes]), 8, seed=0)
    )
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.AdamW([*vit.parameters(), *heads.parameters()], lr=1e-3)
    history = []
    for _ in range(12):
        loss, figures = heads.losses(vit(pixel_values=pixels).last_hidden_state, *labels)
        optimizer.zero_grad()
        loss.backward()
        assert vit.embeddings.cls_token.grad.abs().sum() > 0
        optimizer.step()
        history.append(figures)
    for name in ("colour", "centre", "frame"):
        assert history[-1][name] < 0.8 * history[0][name]
