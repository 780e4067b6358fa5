"""Videos as clips that a summarizer reads in turn, and the choice of clips by a question, as training draws it.

VideoStreaming (arXiv 2405.16009), sections 3.1 to 3.3. Shapes: K clips of a video, S slots, N tokens of a slot, D
channels of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from liteframe.models.vlm.clip_summarizer import ClipSummarizer, time_text
from liteframe.models.vlm.processor import Slot, Times
from liteframe.reduce.base import mean_at
from liteframe.reduce.selection import newest_top

DETACHED = 2  # clips through which a gradient goes back in time
Span = tuple[float, float]


@dataclass
class ClippedVideo:
    """A video as clips.

    Attributes:
        clips: tokens [n,D] of each.
        means: their mean at each place, [N,D] each.
        lines: first frame, last frame and tokens of each, once it is one slot.
        times: seconds of the first and the last frame of each.
        end: what ends a video for the language model, [0,D] or [1,D].
        memories: [N,D] of each clip that was read.
        keys: [D] of each: what it is about.
    """

    clips: list[Tensor]
    means: list[Tensor]
    lines: list[Slot]
    times: list[Span]
    end: Tensor
    memories: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)


def cut_video(features: Tensor, slots: Sequence[Slot], times: Times, slots_per_clip: int) -> ClippedVideo:
    """Cut a video into clips, the last of what is left.

    Args:
        features: [S*N,D] of its slots, and what ends it.
        slots: of it.
        times: seconds of the first and the last frame of each.
        slots_per_clip: slots that are a clip.
    """
    count = len(slots)
    tokens = slots[0].tokens
    of_slots = features[: count * tokens].unflatten(0, (count, tokens))  # [S,N,D]
    # A slot that ends a video may be filled up; its own frames count, as in Tokens.size.
    sizes = torch.tensor([[float(last - first + 1)] * tokens for first, last, _ in slots])
    parts = [slice(start, start + slots_per_clip) for start in range(0, count, slots_per_clip)]
    return ClippedVideo(
        [of_slots[part].flatten(0, 1) for part in parts],
        [mean_at(of_slots[part], sizes[part]) for part in parts],
        [Slot(slots[part][0].first_frame, slots[part][-1].last_frame, tokens) for part in parts],
        [(times[part][0][0], times[part][-1][1]) for part in parts],
        features[count * tokens :],
    )


def read_clips(summarizer: ClipSummarizer, videos: Sequence[ClippedVideo], embed: Callable[[str], Tensor]) -> None:
    """Give videos their memories and keys, all videos clip by clip at a time.

    Args:
        summarizer: reads.
        videos: are changed.
        embed: from text to what the language model reads for it, [n,D].
    """
    propagate = summarizer.settings.propagate
    for number in range(max((len(video.clips) for video in videos), default=0)):
        under_way = [video for video in videos if number < len(video.clips)]
        before = []
        for video in under_way:
            start, past = video.times[0][0], video.times[number - 1][1]
            begin, end = (time - start for time in video.times[number])
            if not (propagate and number):
                before.append(embed(time_text(None, begin, end)))
                continue
            history = video.memories[-1].detach() if number % DETACHED == 0 else video.memories[-1]
            text = embed(time_text(past - start, begin, end))
            before.append(torch.cat([text.to(history.dtype), history]))
        slots, means = ([getattr(video, name)[number] for video in under_way] for name in ("clips", "means"))
        memories, keys = summarizer.clips(before, slots, means)
        for video, memory, key in zip(under_way, memories, keys, strict=True):
            video.memories.append(memory)
            video.keys.append(key)


def gumbel(count: int) -> Tensor:
    """Draws of the standard Gumbel distribution [count]."""
    return -torch.empty(count).exponential_().log()


def draw_clips(scores: Tensor, count: int, noise: Tensor) -> tuple[list[int], Tensor]:
    """Clips that a noisy choice takes, with a gradient for all scores (straight-through Gumbel top-k).

    Args:
        scores: [K].
        count: clips that are taken.
        noise: [K] of `gumbel`.

    Returns:
        Their numbers, ascending, and a mask [K], 1 at these and 0 elsewhere, with the gradient of the softmax.
    """
    noisy = scores + noise.to(scores)
    soft, hard = noisy.softmax(0), torch.zeros_like(scores)
    chosen = newest_top(noisy.detach(), count)
    hard[chosen] = 1
    return chosen, hard + (soft - soft.detach())


def divergence(scores: Tensor, target: Sequence[int]) -> Tensor:
    """Kullback-Leibler divergence of softmax(scores) [K] from equal shares of the target's clips."""
    share = 1 / len(target)
    return (torch.tensor(share).log().to(scores) - scores.log_softmax(0)[list(target)]).mul(share).sum()


def clips_of_span(times: Sequence[Span], span: Span) -> list[int]:
    """Clips that show seconds of a span; a clip lasts until the next begins, the first and the last without end."""
    begins = [-float("inf"), *(begin for begin, _ in times[1:]), float("inf")]
    return [number for number in range(len(times)) if begins[number] <= span[1] and span[0] < begins[number + 1]]
