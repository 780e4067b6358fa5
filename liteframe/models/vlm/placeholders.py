"""Placeholders of a prompt and the features that take their places.

This file travels inside exported models: it imports torch, nothing else. Shapes: B x L tokens, D channels.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def place_features(
    embeddings: Tensor,
    input_ids: Tensor,
    placeholder_id: int,
    features: Sequence[Tensor],
    per_row: Sequence[int] | None = None,
) -> Tensor:
    """Put the features of videos where a prompt, or a part of one, has their placeholders.

    Args:
        embeddings: [B,L,D], of the tokens.
        input_ids: [B,L], on any device; on the CPU, no device has to be waited for.
        placeholder_id: token that stands for one feature.
        features: [tokens,D] of each video, row after row in the order of the prompt; in any floating type. With
            [tokens,n*D], what a language model with deepstack adds after its first layers follows in further channels.
        per_row: placeholders in each row of `input_ids`, where they have been counted; None counts them.

    Returns:
        [B,L,D]: the embeddings, with features in place of the placeholders; [B,L,n*D] of features that wide, with zeros
        behind the embeddings of text.

    Raises:
        ValueError: the numbers of placeholders and of features differ, in all or within a row.
    """
    if not torch.compiler.is_compiling():
        check_placeholders(input_ids, placeholder_id, [len(video) for video in features], per_row)
    if not features:
        return embeddings
    mask = (input_ids == placeholder_id).unsqueeze(-1).to(embeddings.device)  # [B,L,1]
    embeddings = F.pad(embeddings, (0, features[0].shape[-1] - embeddings.shape[-1]))
    return embeddings.masked_scatter(mask, torch.cat(list(features)).to(embeddings))


def check_placeholders(
    input_ids: Tensor, image_token_id: int, video_tokens: list[int], per_row: Sequence[int] | None = None
) -> list[int]:
    """Number of videos in each row of the prompt [B,L], given the tokens that each video yields.

    `per_row` are the image tokens of the rows, where they are known: counting them waits for the device of `input_ids`.

    Raises:
        ValueError: the numbers of image tokens and of features differ, in all or within a row.
    """
    if per_row is None:
        per_row = (input_ids == image_token_id).sum(-1).tolist()
    if sum(per_row) != sum(video_tokens):
        raise ValueError(
            f"the prompt holds {sum(per_row)} image tokens, but the videos give {sum(video_tokens)} features; "
            "build both with the model's own processor, and do not truncate the prompt"
        )
    ends = list(accumulate(video_tokens))
    videos_up_to = [0]
    for tokens_up_to in accumulate(per_row):
        if tokens_up_to and tokens_up_to not in ends:
            raise ValueError(
                f"rows of the prompt hold {per_row} image tokens, which does not cut the videos' {video_tokens} "
                "features between two videos; each row needs all tokens of its own videos"
            )
        videos_up_to.append(ends.index(tokens_up_to) + 1 if tokens_up_to else 0)
    return [b - a for a, b in pairwise(videos_up_to)]


def with_written_placeholders(
    features: list[Tensor], input_ids: Tensor, placeholder_id: int, plain: Tensor
) -> list[Tensor]:
    """Features for all placeholders of a step: those of the videos, and plain ones for what was written as an answer.

    A draft (prompt lookup copies from the prompt, an assistant guesses) or the model itself may write placeholders.
    They stand behind the prompt, in columns of their own, and for no video.

    Args:
        features: [tokens,D] of each video in the prompt, row after row; all of them, or none where they are cached.
        input_ids: [B,L], the prompt, if it is not cached, and what was written.
        placeholder_id: token that stands for one feature.
        plain: its embedding [1,D].

    Returns:
        `features` as they are where nothing was written or they do not fit the prompt; else [tokens,D] for each row.
    """
    mask = input_ids == placeholder_id  # [B,L]
    count = sum(len(video) for video in features)
    in_prompt = mask & (mask.sum(0).cumsum(0) <= count)  # [B,L]
    if bool(mask.sum() == count) or bool(in_prompt.sum() != count):
        return features
    filled = plain.repeat(int(mask.sum()), 1)  # [placeholders,D]
    if count:
        filled = F.pad(filled, (0, features[0].shape[-1] - filled.shape[-1]))
        filled[in_prompt[mask].to(plain.device)] = torch.cat(features).to(plain)
    return list(filled.split(mask.sum(1).tolist()))
