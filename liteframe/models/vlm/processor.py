"""Prompts and pixels for a Video LLM with a LiteFrame encoder: what all families share.

A *slot* is the few frames whose tokens stand together in the prompt, such as the 4 that become one token grid.
This file travels inside exported models: it imports torch, transformers, numpy and what travels with it.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ImagesKwargs, ProcessorMixin, TextKwargs
from transformers.utils import logging

from liteframe.frame_size import center_cut, covering_size, frame_size
from liteframe.models.vlm.mrope import Mrope, padded_position_ids
from liteframe.models.vlm.visuals import listed_images, listed_videos, read_video, rgb_video

Frames = np.ndarray | torch.Tensor
Times = Sequence[tuple[float, float]]  # seconds of the first and the last frame of each slot
logger = logging.get_logger(__name__)
# What transformers' processors can add to a prompt's tokens, and ours cannot.
UNSUPPORTED = ("return_mm_token_type_ids", "sanitize_control_tokens")


class Slot(NamedTuple):
    """Frames `first_frame` to `last_frame` of a video, both included, from 0 on, and how many tokens they have."""

    first_frame: int
    last_frame: int
    tokens: int


def grid_slots(frames: int, frames_per_slot: int, tokens: int) -> list[Slot]:
    """The slots of a video of which each `frames_per_slot` frames, or what is left at the end, have `tokens` tokens."""
    starts = range(0, frames, frames_per_slot)
    return [Slot(start, min(start + frames_per_slot, frames) - 1, tokens) for start in starts]


def slot_times(slots: Sequence[Slot], seconds: Sequence[float] | None) -> Times | None:
    """When the first and the last frame of each slot are shown, given that of each frame; None: nobody knows."""
    return None if seconds is None else [(seconds[slot.first_frame], seconds[slot.last_frame]) for slot in slots]


class Shown(NamedTuple):
    """A video or an image in a prompt: what stands for it, and where its tokens lie (int64 [4,N], see Mrope)."""

    text: str
    places: torch.Tensor | None


def joined(videos: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    """Videos [T,3,h,w] as the model takes them: one tensor [sum of T,3,h,w], or a list where their sizes differ."""
    same = len({video.shape[1:] for video in videos}) == 1
    return torch.cat(list(videos)) if same else list(videos)


class LiteFrameProcessor(ProcessorMixin):
    """Tokenizer, video processor and the prompt that ties them; a family says what stands for a video and an image.

    Attributes:
        image_token, image_token_id: the placeholder of one feature.
        video_token: the placeholder of a video in a prompt that is not expanded yet.
        frames_per_slot: frames that the encoder merges into one token grid.
        pixels_per_token: side in pixels of the square that one image token stands for.
        mrope: how the language model numbers vision tokens, where it does not count them like words.
        needs_times: whether prompts or positions say when frames are shown.
        closing: what stands behind the last slot of a video whose slots are not parted.
        tokens_per_video: tokens that stand for a whole video, where something sums it up before the language model.
        resize: how the encoder has seen frames: "squash" brings them to `frame_size`, "crop" cuts their center out,
            "aspect" keeps their aspect ratio (see liteframe/frame_size.py).
    """

    mrope: Mrope | None = None
    needs_times = False
    closing = ""
    tokens_per_video: int | None = None
    image_token: str
    image_token_id: int
    video_token: str
    frames_per_slot: int
    pixels_per_token: int
    resize: str

    def video_text(self, slots: Sequence[tuple[int, int, int]], times: Times | None = None) -> str:
        """What stands for a video in a prompt, given its slots (see Slot); slots without tokens leave no trace.

        Args:
            slots: of the video.
            times: of each; None: frames are a second apart. Families that write no times read none.
        """
        raise NotImplementedError

    def image_text(self, tokens: int) -> str:
        """What stands for an image of so many tokens in a prompt."""
        raise NotImplementedError

    def slots(self, frames: int, height: int, width: int) -> list[Slot]:
        """Those of a video of `frames` frames of height x width pixels (after resizing) whose tokens form a grid."""
        if self.tokens_per_video is not None:
            return [Slot(0, frames - 1, self.tokens_per_video)]
        return grid_slots(frames, self.frames_per_slot, self.tokens_per_slot(height, width))

    @property
    def model_input_names(self) -> list[str]:
        """Names of what __call__ returns."""
        names = ["input_ids", "attention_mask", "pixel_values_videos", "video_frames"]
        return names if self.mrope is None else [*names, "position_ids"]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width in pixels that frames are resized to; of frames in their own aspect ratio, the budget.

        Raises:
            ValueError: the video processor does not resize to a fixed size.
        """
        size = dict(self.video_processor.size)
        if not {"height", "width"} <= size.keys():
            raise ValueError(f"the video processor's size is {size}; a fixed height and width are needed")
        return size["height"], size["width"]

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that frames of this shape are resized to; errors as of `frame_size`."""
        side = self.pixels_per_token
        return frame_size(height, width, self.frame_size, self.resize, (side, side))

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        return_tensors: str = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        return_text_replacement_offsets: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Tokenize prompts and prepare their frames.

        Args:
            images: arrays, images of PIL, or names of files; an image is a video of one frame.
            text: prompts, with one `video_token` a video and one `image_token` an image.
            videos: arrays [T,H,W,3] or [T,3,H,W], lists of frames, or names of files, in the order of the placeholders.
            audio: None.
            return_tensors: "pt" only.
            padding: as the tokenizer's; default pads to the longest prompt.
            padding_side: "left" for generation, "right" for training.
            return_text_replacement_offsets: also where placeholders were and what replaced them, as in transformers.
            **kwargs: further arguments of the tokenizer and the video processor, such as `num_frames`, `fps`,
                `do_sample_frames`, `size`, `do_rescale`, with the meaning that they have in transformers; also by
                modality (`videos_kwargs={"num_frames": 8}`).

        Returns:
            input_ids, attention_mask [B,L]; with frames also pixel_values_videos [sum of T,3,H,W] float32 (a list of
            [T,3,H,W], one a video, where their sizes differ) and video_frames [V], images counted among the videos, in
            the order of the placeholders; where the language model counts on three axes also position_ids [3,B,L].

        Raises:
            ValueError: no text, wrong frames, an argument that means nothing here, or another number of placeholders
                than of videos and images.
        """
        name = type(self).__name__
        if text is None:
            raise ValueError(f"{name}: text is missing")
        if return_tensors != "pt":
            raise ValueError(f"return_tensors={return_tensors!r}: only 'pt' is supported")
        if audio is not None:
            raise ValueError(f"{name} takes no audio: the model sees videos and images")
        prompts = [text] if isinstance(text, str) else list(text)
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"{name}: text must be a string or a list of strings")
        words, of_videos, of_images = self._by_modality(kwargs)
        words = {"padding": padding, "padding_side": padding_side, **words}
        marks = words.pop("return_text_replacement_offsets", return_text_replacement_offsets)
        clips, metadata = self._clips(listed_videos(videos), of_videos)
        stills, _ = self._clips([[image] for image in listed_images(images)], of_images)
        prompts, ordered, replaced, shown = self._expand(prompts, clips, stills, self._times(clips, metadata))
        data = dict(self.tokenizer(prompts, return_tensors="pt", **words))
        data.pop("token_type_ids", None)
        needed = sum(prompt.count(self.image_token) for prompt in prompts)
        found = int((data["input_ids"] == self.image_token_id).sum())
        if found != needed:
            raise ValueError(f"{found} of {needed} image tokens are left: do not truncate the prompt, or show less")
        if self.mrope is not None:
            rows = zip(data["input_ids"], data["attention_mask"].bool(), shown, strict=True)
            positions = [self.position_ids(ids[mask], media) for ids, mask, media in rows]
            data["position_ids"] = padded_position_ids(positions, data["attention_mask"])
        if ordered:
            data["pixel_values_videos"] = joined(ordered)
            data["video_frames"] = torch.tensor([len(v) for v in ordered])
        if of_videos.get("return_metadata"):
            data["video_metadata"] = metadata
        if marks:
            data["text_replacement_offsets"] = replaced
        return BatchFeature(data)

    def _by_modality(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Arguments of the tokenizer, for videos and for images; one of no named modality is for all that know it."""
        of_videos = set(self.video_processor.valid_kwargs.__annotations__)
        known = {
            "text_kwargs": set(TextKwargs.__annotations__),
            "videos_kwargs": of_videos,
            # An image is one frame, in no tiles; batching is ours.
            "images_kwargs": of_videos & set(ImagesKwargs.__annotations__) | {"crop_to_patches", "disable_grouping"},
        }
        flat = {**kwargs.pop("common_kwargs", {}), **kwargs}
        chosen = {group: dict(flat.pop(group, {})) for group in known}
        for group, names in known.items():
            chosen[group] |= {name: value for name, value in flat.items() if name in names}
        unknown = set(flat) - set().union(*known.values())
        unknown |= {name for group, names in known.items() for name in set(chosen[group]) - names}
        words, videos, images = chosen.values()
        unknown |= {name for name in UNSUPPORTED if words.pop(name, None)}
        unknown |= {"crop_to_patches"} if images.pop("crop_to_patches", False) else set()
        images.pop("disable_grouping", None)
        if unknown:
            raise ValueError(f"{type(self).__name__} does not take {', '.join(sorted(unknown))}; leave it out")
        for options in (words, videos, images):
            if options.pop("return_tensors", "pt") != "pt":
                raise ValueError("return_tensors: only 'pt' is supported")
        ignored = [name for name in ("num_frames", "fps") if videos.get(name) is not None]
        if ignored and not videos.get("do_sample_frames"):
            raise ValueError(f"{' and '.join(ignored)} choose frames only with do_sample_frames=True; add it")
        return words, videos, images

    def _clips(self, videos: list[Any], options: dict[str, Any]) -> tuple[list[torch.Tensor], list[Any]]:
        """Pixels [T,3,h,w] of each video, and what transformers tells of it (None without return_metadata)."""
        steps = {"do_sample_frames": False, **options}
        layout, told = steps.pop("input_data_format", None), steps.pop("video_metadata", None)
        told = _flat(told) if told is not None else [None] * len(videos)
        if len(told) != len(videos):
            raise ValueError(f"got {len(videos)} videos, but {len(told)} video_metadata; give one a video")
        clips: list[torch.Tensor] = []
        metadata: list[Any] = []
        for video, facts in zip(videos, told, strict=True):
            given: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first", **steps}
            given["return_metadata"] = True
            named = isinstance(video, str)
            if named:
                video, facts = read_video(video, self._sampling(steps) if steps["do_sample_frames"] else None)
                given["do_sample_frames"] = False
            elif facts is not None:
                given["video_metadata"] = [facts]
            frames = rgb_video(video, layout, floating=steps.get("do_rescale") is False)  # [T,3,H,W]
            fitted = self.resize != "squash" and "size" not in steps and steps.get("do_resize", True)
            if fitted:
                given["size"] = self._before_cut(frames)
            processed = self.video_processor(videos=[frames], **given)
            clip = processed["pixel_values_videos"][0]  # [T',3,h,w]
            clips.append(self._cut(clip) if fitted else clip)
            metadata.append(facts if named else processed.get("video_metadata", [None])[0])
        return clips, metadata

    def _sampling(self, options: dict[str, Any]) -> Callable[..., Any]:
        """The video processor's own choice of frames, given a file's metadata."""
        known = self.video_processor.valid_kwargs.__annotations__
        values = {name: options.get(name, getattr(self.video_processor, name, None)) for name in known}
        return partial(self.video_processor.sample_frames, **values)

    def pixels(self, frames: Frames) -> torch.Tensor:
        """Resize and normalize as the video processor says: [T,H,W,3] uint8 -> [T,3,h,w] float32.

        Raises:
            ValueError: not [T,H,W,3] uint8 with T >= 1.
        """
        return self.normalized(self.resized(frames))

    def resized(self, frames: Frames, size: tuple[int, int] | None = None) -> torch.Tensor:
        """The first half of `pixels`, in bytes: [T,H,W,3] uint8 -> [T,3,h,w] uint8, (h,w) of these frames or `size`."""
        video = torch.as_tensor(frames)
        if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != torch.uint8 or len(video) == 0:
            raise ValueError(f"expected frames [T,H,W,3] uint8 with T >= 1, got {list(video.shape)} {video.dtype}")
        video = video.permute(0, 3, 1, 2).contiguous()
        bare = {"do_sample_frames": False, "do_rescale": False, "do_normalize": False}
        given = {**bare, "size": self._before_cut(video) if size is None else _named_size(size)}
        video = self.video_processor(videos=[video], return_tensors="pt", **given)["pixel_values_videos"][0]
        return self._cut(video) if size is None else video

    def _before_cut(self, video: torch.Tensor) -> dict[str, int]:
        """The size that [T,3,H,W] is resized to, as a video processor takes it."""
        height, width = video.shape[-2:]
        crop = self.resize == "crop"
        return _named_size(covering_size(height, width, self.frame_size) if crop else self.size_of(height, width))

    def _cut(self, video: torch.Tensor) -> torch.Tensor:
        """What the encoder sees of a video of that size."""
        if self.resize != "crop":
            return video
        height, width = video.shape[-2:]
        rows, columns = center_cut(height, width, self.frame_size)
        return video[..., rows, columns].contiguous()

    def normalized(self, resized: torch.Tensor) -> torch.Tensor:
        """The second half, on whichever device the bytes are: [T,3,h,w] uint8 -> float32."""
        bare = {"do_sample_frames": False, "do_resize": False, "do_center_crop": False, "do_pad": False}
        return self.video_processor(videos=[resized], return_tensors="pt", **bare)["pixel_values_videos"][0]

    def tokens_per_slot(self, height: int, width: int) -> int:
        """Image tokens of one slot at height x width pixels; raises as `grid`."""
        rows, columns = self.grid(height, width)
        return rows * columns

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the image tokens of one slot at height x width pixels.

        Raises:
            ValueError: a side is not a multiple of pixels_per_token.
        """
        side = self.pixels_per_token
        if height % side or width % side or not height or not width:
            raise ValueError(f"frames of {height}x{width} pixels do not fit: both sides must be multiples of {side}")
        return height // side, width // side

    def shown_video(self, frames: int, height: int, width: int, seconds: Sequence[float] | None = None) -> Shown:
        """A video of `frames` frames of height x width pixels (after resizing) in a prompt.

        Args:
            frames: number of them.
            height: in pixels.
            width: in pixels.
            seconds: when each frame is shown; None: they are a second apart.
        """
        slots = self.slots(frames, height, width)
        times = slot_times(slots, seconds)
        places = None if self.mrope is None else self.mrope.places(slots, self.grid(height, width), times)
        return Shown(self.video_text(slots, times), places)

    def shown_image(self, height: int, width: int) -> Shown:
        """An image of height x width pixels (after resizing) in a prompt."""
        tokens = self.tokens_per_slot(height, width)
        places = None if self.mrope is None else self.mrope.places([(0, 0, tokens)], self.grid(height, width))
        return Shown(self.image_text(tokens), places)

    def position_ids(self, ids: torch.Tensor, media: Sequence[Shown]) -> torch.Tensor:
        """Positions [3,L] of a prompt without padding, int64 [L], whose videos and images these are, in order.

        Raises:
            ValueError: they are not, or the language model counts all tokens alike.
        """
        if self.mrope is None:
            raise ValueError(f"{type(self).__name__}: the language model has positions of one axis and counts itself")
        places = [one.places for one in media if one.places is not None]
        none = torch.empty(4, 0, dtype=torch.long)
        return self.mrope.position_ids(ids == self.image_token_id, torch.cat([none, *places], 1))

    def _times(self, clips: list[torch.Tensor], metadata: list[Any]) -> list[list[float] | None]:
        """Seconds of the frames of each video, where they are known."""
        times = [frame_times(facts, len(clip)) for clip, facts in zip(clips, metadata, strict=True)]
        if self.needs_times and None in times:
            logger.warning_once(
                f"{type(self).__name__} tells the language model when frames are shown, and was not told it: they are "
                "taken to be a second apart; pass video_metadata with fps (and frames_indices), or names of files"
            )
        return times

    def _expand(
        self,
        prompts: list[str],
        clips: list[torch.Tensor],
        stills: list[torch.Tensor],
        times: list[list[float] | None],
    ) -> tuple[list[str], list[torch.Tensor], list[list[dict[str, Any]]], list[list[Shown]]]:
        """Prompts with their placeholders replaced, the clips in their order, and of each prompt what was replaced."""
        pattern = re.compile(f"{re.escape(self.video_token)}|{re.escape(self.image_token)}")
        for kind, token, arrays in (("videos", self.video_token, clips), ("images", self.image_token, stills)):
            count = sum(prompt.count(token) for prompt in prompts)
            if count != len(arrays):
                raise ValueError(f"the text holds {count} {token} placeholders, but {len(arrays)} {kind} were given")
        timed = zip(clips, times, strict=True)
        sources = {self.video_token: iter(timed), self.image_token: iter([(still, None) for still in stills])}
        ordered: list[torch.Tensor] = []
        media: list[list[Shown]] = []
        replaced: list[list[dict[str, Any]]] = []

        def replace(match: re.Match[str]) -> str:
            (frames, seconds), is_image = next(sources[match.group()]), match.group() == self.image_token
            ordered.append(frames)
            height, width = frames.shape[-2:]
            if is_image:
                one = self.shown_image(height, width)
            else:
                one = self.shown_video(len(frames), height, width, seconds)
            media[-1].append(one)
            shown = one.text
            before = replaced[-1][-1] if replaced[-1] else {"span": (0, 0), "new_span": (0, 0)}
            start = match.start() + before["new_span"][1] - before["span"][1]
            place = {"span": match.span(), "new_span": (start, start + len(shown))}
            kind = "image" if is_image else "video"
            replaced[-1].append({"type": kind, **place, "text": match.group(), "replacement": shown})
            return shown

        expanded = []
        for prompt in prompts:
            replaced.append([])
            media.append([])
            expanded.append(pattern.sub(replace, prompt))
        return expanded, ordered, replaced, media


def _named_size(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def frame_times(facts: Any, frames: int) -> list[float] | None:
    """Seconds of the frames of a video by transformers' metadata of it, an object or a dictionary; None: unknown."""
    facts = vars(facts) if hasattr(facts, "__dict__") else facts or {}
    fps, indices = facts.get("fps"), facts.get("frames_indices")
    if not fps:
        return None
    chosen = range(frames) if indices is None else [int(index) for index in indices]
    return [index / fps for index in chosen] if len(chosen) == frames else None


def _flat(metadata: Any) -> list[Any]:
    """One, a list, or lists of lists of what is told of videos -> a list."""
    return [one for item in metadata for one in _flat(item)] if isinstance(metadata, list | tuple) else [metadata]
