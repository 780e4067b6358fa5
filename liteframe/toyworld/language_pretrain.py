"""Second stage of the toyworld teacher: teach projector and language model to answer, on a frozen ViT's features.

Besides the answers, two read-outs through the word embeddings keep the stage short: a projected image token names the
colour and shape of what it shows, and inside the language model it names the direction in which that moves.

Several questions share one video in a sequence: each sees the video and itself, never another question, so that one
pass over the frames trains many answers without one question giving away another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from liteframe.models.vlm.family import family_of
from liteframe.models.vlm.processor import grid_slots, slot_times
from liteframe.toyworld.model import TOKENS_PER_FRAME
from liteframe.toyworld.questions import SceneQuestion, all_questions
from liteframe.toyworld.scenes import COLOURS, DIRECTIONS, FPS, FRAMES, SHAPES, Scene


@dataclass(frozen=True)
class Packed:
    """One batch: token ids and the frames to show; every video has the same frame count and question slots.

    A view is what the tower sees together, a frame or a pair of frames; there are S of them.
    """

    frames: Tensor  # int64 [B, F], frame indices
    prefix: Tensor  # int64 [B, P], tokens before the first question, with placeholders
    shows: Tensor  # bool [P], where placeholders are
    positions: Tensor  # int64 [axes, B, P], of the prefix
    questions: Tensor  # int64 [B, Q, L], question, answer and end-of-turn, padded on the right
    labels: Tensor  # int64 [B, Q, L], -100 outside the answer and its end-of-turn
    video: np.ndarray  # int64 [B], which videos
    order: np.ndarray  # int64 [B, Q], which of a video's questions
    words: Tensor  # int64 [B, S, h, w, 3], ids of the colour, shape and direction word of each image token, or -100
    choices: tuple[Tensor, Tensor, Tensor]  # ids of all colour words, shape words, direction words


class Packer:
    """Draws videos and questions and lays them out as token ids, as the processor of the model's family does.

    Args:
        model: the tiny Video LLM.
        processor: transformers' own of it.
        scenes: the scene of each video.
        owner: `vision_pretrain.owners` of each, `[V, T, GRID, GRID]`.
        seed: of the draws.
    """

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, scenes: list[Scene], owner: np.ndarray, seed: int
    ) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.family = family_of(model.config.model_type)
        self.mrope = None if self.family.mrope is None else self.family.mrope(model.config)
        self.placeholder = self.family.video_token_id(model.config)
        self.owner = owner
        word = self.tokenizer.convert_tokens_to_ids
        none = (-100, -100, -100)
        names = (COLOURS, (*SHAPES, "star"), DIRECTIONS)
        colours, shapes, directions = (torch.tensor([word(name) for name in group]) for group in names)
        self.choices = (colours, shapes, directions)
        self.words = np.array(
            [
                [none]
                + [(word(m.colour), word(m.shape), word(m.direction)) for m in scene.movers]
                + [(word(scene.flash.colour), word("star"), -100)]
                for scene in scenes
            ]
        )
        self.rng = np.random.default_rng(seed)
        self.questions = [all_questions(scene) for scene in scenes]
        self.pool = [[self._encode(question) for question in questions] for questions in self.questions]
        self.length = max(len(ids) for pool in self.pool for ids, _ in pool)

    def _encode(self, question: SceneQuestion) -> tuple[list[int], int]:
        asked = self.tokenizer(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = self.tokenizer(f"{question.answer}<|im_end|>")["input_ids"]
        return asked + answer, len(answer)

    def kinds(self, video: int, order: np.ndarray) -> list[str]:
        """Types of the questions that were drawn for a video."""
        return [self.questions[video][pick].kind for pick in order]

    def prefix(self, times: np.ndarray) -> tuple[Tensor, Tensor]:
        """An opened user turn that shows frames with these indices `[F]`: token ids `[P]`, positions `[axes, P]`."""
        slots = grid_slots(len(times), self.family.temporal_patch, TOKENS_PER_FRAME)
        seconds = slot_times(slots, (times / FPS).tolist())
        video = self.family.video_text(self.processor, slots, seconds)
        ids = torch.tensor(self.tokenizer(f"<|im_start|>user\n{video}\n")["input_ids"])
        if self.mrope is None:
            return ids, torch.arange(len(ids))[None]
        side = int(TOKENS_PER_FRAME**0.5)
        places = self.mrope.places(slots, (side, side), seconds)
        return ids, self.mrope.position_ids(ids == self.placeholder, places)

    def draw(self, videos: int, frames: int, questions: int) -> Packed:
        """A batch of `videos` videos with `frames` frames each (a random phase of a uniform reading).

        Raises:
            ValueError: the frames are no whole pairs for a tower that sees pairs.
        """
        if frames % self.family.temporal_patch:
            raise ValueError(f"{frames} frames are no whole views of {self.family.temporal_patch} frames")
        rng = self.rng
        rows = rng.integers(len(self.pool), size=videos)
        phase = rng.random((videos, 1))
        times = np.floor((np.arange(frames) + phase) * FRAMES / frames).astype(np.int64)
        ids = np.full((videos, questions, self.length), self.tokenizer.pad_token_id, np.int64)
        labels = np.full_like(ids, -100)
        order = np.stack([rng.permutation(len(self.pool[row]))[:questions] for row in rows])
        for b, row in enumerate(rows):
            for q, pick in enumerate(order[b]):
                tokens, answer = self.pool[row][pick]
                ids[b, q, : len(tokens)] = tokens
                labels[b, q, len(tokens) - answer : len(tokens)] = tokens[-answer:]
        prefixes, positions = (torch.stack(part) for part in zip(*map(self.prefix, times), strict=True))
        return Packed(
            torch.from_numpy(times),
            prefixes,
            prefixes[0] == self.placeholder,
            positions.transpose(0, 1),
            torch.from_numpy(ids),
            torch.from_numpy(labels),
            rows,
            order,
            torch.from_numpy(self._words_of(rows, times)),
            self.choices,
        )

    def _words_of(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Word ids of each image token (of 2 x 2 patches, the object that owns most of them), `[B, S, h, w, 3]`."""
        patches = self.owner[rows[:, None], times]
        b, f, h, w = patches.shape
        pair = self.family.temporal_patch
        blocks = patches.reshape(b, f // pair, pair, h // 2, 2, w // 2, 2)
        counts = np.stack([(blocks == thing).sum(axis=(2, 4, 6)) for thing in range(4)], axis=-1)
        counts[..., 0] = 0  # background only where there is nothing else
        return self.words[rows[:, None, None, None], counts.argmax(-1)]


def _mask(prefix: int, questions: int, length: int) -> Tensor:
    """Boolean `[1, 1, N, N]`: causal, and a question sees the prefix and itself only."""
    total = prefix + questions * length
    block = torch.cat([torch.zeros(prefix, dtype=torch.long), 1 + torch.arange(questions).repeat_interleave(length)])
    visible = (block[None] == 0) | (block[None] == block[:, None])
    return (visible & torch.ones(total, total, dtype=torch.bool).tril())[None, None]


def _named(model: PreTrainedModel, tokens: Tensor, words: Tensor, choices: Tensor) -> Tensor:
    """Cross-entropy of naming a word by the language head, among `choices`.

    Args:
        model: has the head.
        tokens: `[N, C]`.
        words: int64 `[N]`, token ids, or -100 where there is nothing to name.
        choices: int64 `[K]`, the token ids that compete: a token names its colour and its shape at the same time.
    """
    spoken = words != -100
    if not spoken.any():
        return tokens.sum() * 0.0
    logits = F.linear(tokens[spoken], model.lm_head.weight[choices]).float()
    return F.cross_entropy(logits, (words[spoken, None] == choices).long().argmax(-1))


def answer_loss(model: PreTrainedModel, tokens: Tensor, batch: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy on the answers, and of the two read-outs.

    Args:
        model: the tiny Video LLM; its ViT is not run.
        tokens: what its language model reads of the batch's frames, `[B, N, D]`, one a placeholder.
        batch: the layout.

    Returns:
        Mean loss of the answers, mean loss of the read-outs, and whether each question was answered right
        `[B, Q]` (bool, teacher-forced).
    """
    embed = model.get_input_embeddings()
    prefix = embed(batch.prefix)  # [B,P,D]
    prefix = prefix.masked_scatter(batch.shows[None, :, None].expand_as(prefix), tokens.to(prefix.dtype))
    count, length = batch.questions.shape[1:]
    size = prefix.shape[1]
    after = 1 + batch.positions.amax((0, 2))[:, None] + torch.arange(length).repeat(count)  # [B,Q*L]
    positions = torch.cat([batch.positions, after.expand(len(batch.positions), -1, -1)], dim=2)
    output = (
        family_of(model.config.model_type)
        .parts(model)
        .language_model(
            inputs_embeds=torch.cat([prefix, embed(batch.questions).flatten(1, 2)], dim=1),
            attention_mask=_mask(size, count, length),
            position_ids=positions if len(positions) > 1 else positions[0],
            use_cache=False,
            output_hidden_states=True,
        )
    )
    colour, shape, direction = batch.words.flatten(1, 3).unbind(-1)
    middle = output.hidden_states[2][:, :size][:, batch.shows]
    seen, known = tokens.flatten(0, 1), middle.flatten(0, 1)
    colours, shapes, directions = batch.choices
    read_out = _named(model, seen, colour.flatten(), colours) + _named(model, seen, shape.flatten(), shapes)
    read_out = read_out + _named(model, known, direction.flatten(), directions)
    hidden = output.last_hidden_state[:, size:].unflatten(1, (count, length))[:, :, :-1]
    labels = batch.labels[:, :, 1:]
    spoken = labels != -100
    logits = model.lm_head(hidden[spoken]).float()
    loss = F.cross_entropy(logits, labels[spoken])
    right = torch.ones_like(labels, dtype=torch.bool)
    right[spoken] = logits.argmax(-1) == labels[spoken]
    return loss, read_out, right.all(-1)
