"""Token ids that stand for videos and images, by the exported model's own processor."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from liteframe.models.vlm.processor import frame_times, joined
from liteframe.pictures import rgb

# The checkpoint's beginnings of names -> the server's. The tower and the projector keep the rest of their names; the
# language model's layers are then fused by the server itself (q, k, v to qkv; gate, up to gate_up). The newline is
# LLaVA-OneVision's.
PREFIXES = {
    "lm_head.": "language_model.lm_head.",
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
}
# With these the exported processor gives frames as bytes, a quarter of what normalized ones take on their way to the
# device; the encoder normalizes them there.
BYTES = {"do_rescale": False, "do_normalize": False}


def served_name(name: str) -> str:
    """A checkpoint's name -> the server's.

    Raises:
        ValueError: the name belongs to no part of the model.
    """
    for old, new in PREFIXES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"{name} is no weight of a Video LLM with a LiteFrame encoder")


def runs(ids: list[int], token: int, counts: list[int]) -> list[list[tuple[int, int]]]:
    """For each item the runs of its image tokens, as (first, last) positions, both included.

    Args:
        ids: the prompt's token ids.
        token: the image token.
        counts: image tokens of each item, in the order of the prompt.

    Raises:
        ValueError: the prompt holds another number of image tokens than all items together.
    """
    places = [i for i, value in enumerate(ids) if value == token]
    if len(places) != sum(counts):
        raise ValueError(f"the prompt holds {len(places)} image tokens, but its videos and images take {sum(counts)}")
    remaining = iter(places)
    found = []
    for count in counts:
        mine: list[tuple[int, int]] = []
        for place in islice(remaining, count):
            if mine and mine[-1][1] == place - 1:
                mine[-1] = (mine[-1][0], place)
            else:
                mine.append((place, place))
        found.append(mine)
    return found


Size = tuple[int, int]  # (height, width) in pixels, after resizing


def video_ids(
    processor: Any, frames: int, seconds: Sequence[float] | None = None, size: Size | None = None
) -> list[int]:
    """What replaces the video token of a video of `frames` frames: its slots, shown at these seconds.

    Without a size, that of the most tokens: where frames keep their aspect ratio, others have fewer.
    """
    return _encode(processor, processor.shown_video(frames, *(size or processor.frame_size), seconds).text)


def video_ids_within(
    processor: Any, frames: int, tokens: int, seconds: Sequence[float] | None = None, size: Size | None = None
) -> list[int]:
    """`video_ids` for a context of `tokens` in vLLM, whose options the error names.

    Raises:
        ValueError: the video alone is longer.
    """
    ids = video_ids(processor, frames, seconds, size)
    if len(ids) > tokens:
        raise ValueError(
            f"a video of {frames} frames takes {len(ids)} tokens, but the context is {tokens} (--max-model-len): no "
            f"more than {frames_that_fit(processor, tokens)} frames fit; for files, set num_frames in --media-io-kwargs"
        )
    return ids


def image_ids(processor: Any, size: Size | None = None) -> list[int]:
    """What replaces the image token of an image; without a size, of one of the most tokens."""
    return _encode(processor, processor.image_text(processor.tokens_per_slot(*(size or processor.frame_size))))


def _encode(processor: Any, text: str) -> list[int]:
    # Not verbose: `frames_that_fit` tries prompts that are longer than the model reads.
    return processor.tokenizer.encode(text, add_special_tokens=False, verbose=False)


def frames_that_fit(processor: Any, tokens: int) -> int:
    """Frames of the longest video, in whole slots and at least one, that fills no more than `tokens` of the prompt."""
    size = processor.frames_per_slot
    most = tokens // processor.tokens_per_slot(*processor.frame_size)
    slots = range(1, most + 1)
    return size * max(1, bisect_right(slots, tokens, key=lambda number: len(video_ids(processor, size * number))))


def frames_of(video: Any) -> np.ndarray:
    """A video as a server hands it over -> uint8 [T,H,W,3].

    Args:
        video: an array or tensor [T,H,W,3], or a sequence of frames (arrays or PIL).

    Raises:
        ValueError: the frames are not RGB bytes of one size.
    """
    if isinstance(video, torch.Tensor):  # of a decoder that runs on a GPU
        video = video.cpu().numpy()
    if not isinstance(video, np.ndarray):
        video = np.stack([rgb(frame) for frame in video])
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8:
        raise ValueError(f"expected frames [T,H,W,3] uint8, got {list(video.shape)} {video.dtype}")
    return video


def milliseconds_of(video: Any) -> tuple[Any, list[int] | None]:
    """A video as vLLM hands it over, frames or (frames, metadata) -> its frames, and when each is shown, if known."""
    frames, facts = video if isinstance(video, tuple) else (video, None)
    seconds = frame_times(facts, len(frames))
    return frames, None if seconds is None else [round(1000 * second) for second in seconds]


def pixels(processor: Any, videos: list[Any], images: list[Any]) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """What the model takes of videos and images: bytes, resized as in training, which the encoder normalizes.

    Returns:
        For videos pixel_values_videos [sum of T,3,h,w] and video_frames [V], for images pixel_values [N,3,h,w]; uint8.
        Where sizes differ, lists of [T,3,h,w] and [3,h,w]. Where the language model is told times, also
        video_milliseconds int64 [sum of T].

    Raises:
        ValueError: it is told times, and a video does not say when its frames are shown.
    """
    data: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    if videos:
        told = [milliseconds_of(video) for video in videos]
        clips = [processor.resized(frames_of(frames)) for frames, _ in told]
        data["pixel_values_videos"] = joined(clips)
        data["video_frames"] = torch.tensor([len(clip) for clip in clips])
        if processor.needs_times:
            if any(times is None for _, times in told):
                raise ValueError(
                    "this model is told when frames are shown: give a video as (frames, metadata) with fps and "
                    "frames_indices, or as a file"
                )
            data["video_milliseconds"] = torch.tensor([time for _, times in told for time in times or ()])
    if images:
        stills = joined([processor.resized(rgb(image)[None]) for image in images])
        data["pixel_values"] = [still[0] for still in stills] if isinstance(stills, list) else stills
    return data


def regrouped(frames: Any, counts: Any) -> list[torch.Tensor]:
    """Videos as vLLM hands them to the model, of one request or of several -> one tensor [T,3,h,w] each.

    Args:
        frames: [sum of T,3,h,w], [V,T,3,h,w], or a list of tensors [T,3,h,w] or of single frames [3,h,w].
        counts: [V], frames of each video.
    """
    single = frames[0].ndim == 3
    if not single:
        return list(frames)
    lengths = [int(count) for count in counts]
    if isinstance(frames, torch.Tensor):
        return list(frames.split(lengths))
    rest = iter(frames)
    return [torch.stack([next(rest) for _ in range(length)]) for length in lengths]
