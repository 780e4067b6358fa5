"""What one process of `liteframe cache tokens` works with: a run's videos, its encoder, the settings of the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoConfig

from liteframe.align.conversation_rows import MediaItem
from liteframe.align.datamodule import ChatDataModule
from liteframe.align.media import LoadedMedia, MediaReader, expected
from liteframe.align.tokens.media_list import MediaList
from liteframe.align.tokens.settings import MEDIA, STORED, Codec, TokenSettings, encoder_identity
from liteframe.data.stream import Key
from liteframe.data.video.errors import VideoError
from liteframe.files import write_atomically
from liteframe.models.checkpoints import checkpoint_source
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.base import encode_videos
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.vision import LiteFrameVisionConfig, LiteFrameVisionModel, computing_dtype
from liteframe.training.cache.build import (
    OVERHEAD,
    Advance,
    check_space,
    decoded_ahead,
    free_space,
    readable,
    shard_clips,
)
from liteframe.training.cache.settings import ShardKey
from liteframe.training.cache.shard import StoredClip
from liteframe.training.command import Run
from liteframe.training.report import duration

# Clips that the estimate measures, and clips that it tries.
MEASURED, TRIED = 3, 32


class TokenOptions(NamedTuple):
    """How a token cache keeps its clips; the rest follows from the run.

    Attributes:
        views: K draws of each video.
        codec: of the tokens; None loses nothing.
        shard_clips: clips in a shard; None fills about 256 MB.
    """

    views: int
    codec: Codec | None = None
    shard_clips: int | None = None


class LiveEncoder:
    """An encoder as an LMA run has it where it is frozen: same weights, same precision, same clips.

    Args:
        vlm: the Video LLM, whose dtype the encoder takes.
        encoder: folder of the encoder.
        processor: that prepares frames for it.
        fabric: device and precision.
    """

    def __init__(self, vlm: str, encoder: str, processor: LiteFrameProcessor, fabric: Fabric):
        config = AutoConfig.from_pretrained(checkpoint_source(vlm), trust_remote_code=False)
        self.processor, self.fabric = processor, fabric
        self.encoder = LiteFrameEncoder.from_pretrained(encoder).to(dtype=config.dtype or torch.float32)
        with torch.device("meta"):
            self.tower = LiteFrameVisionModel(LiteFrameVisionConfig(**self.encoder.config.to_dict()))
        self.tower.encoder = self.encoder
        self.identity = encoder_identity(self.encoder, processor)
        # As in a run: in eval mode the encoder takes a form of its own, which rounds otherwise.
        self.tower.to(fabric.device).train()

    @property
    def dtype(self) -> torch.dtype:
        """Of the tokens."""
        mixed = str(self.fabric.strategy.precision.precision) == "bf16-mixed"
        return torch.bfloat16 if mixed else computing_dtype(self.encoder)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Uint8 [T,3,h,w] -> the encoder's tokens [T',h',w',C], on the device.

        Raises:
            ValueError: they are not finite.
        """
        frames = self.processor.normalized(self.fabric.to_device(pixels)).to(computing_dtype(self.encoder))
        with self.fabric.autocast():
            (grid,) = encode_videos(self.tower, self.encoder.config.clip_frames, [frames])
        if not torch.isfinite(grid).all():
            raise ValueError("the encoder's tokens are not finite; check its weights and precision")
        return grid


@dataclass(frozen=True)
class TokenBuilder:
    """The run behind a token cache.

    Attributes:
        settings: of the cache.
        data: the run's conversations.
        listed: what they show.
        media: the same, as their rows say it.
        encoder: on the fabric's device.
        fabric: device, precision and processes.
    """

    settings: TokenSettings
    data: ChatDataModule
    listed: MediaList
    media: Sequence[MediaItem]
    encoder: LiveEncoder
    fabric: Fabric

    @property
    def max_failure_rate(self) -> float:
        """Part of the clips that may fail."""
        return self.data.max_failure_rate

    @property
    def remedy(self) -> str:
        """What to do when more do."""
        return (
            f"Remove the rows of bad videos from {self.data.source} (`liteframe scan` finds them), or allow more with "
            "--data.max_failure_rate; finished shards stay."
        )

    def estimate(self, missing: Sequence[ShardKey], folder: Path) -> str:
        """Size and time of these shards in words, from a few clips that go through everything.

        Raises:
            ValueError: none of the first videos can be read, or the file system has too little space.
        """
        settings, processes, workers = self.settings, self.fabric.world_size, self.data.workers
        frames, needed = 0, 0
        for key in missing:
            for view, index in key.clips:
                shape = self.expected(view, index)
                frames, needed = frames + shape[0], needed + settings.clip_bytes(*shape) + OVERHEAD
        decoding, encoding = self.measure()
        # Workers decode while the encoder computes.
        seconds = max(decoding / workers, encoding) if workers else decoding + encoding
        clips, free = sum(key.count for key in missing), free_space(folder)
        text = (
            f"{settings.media} videos and images x {settings.views} views, "
            f"{readable(needed / max(1, frames))} a frame ({settings.codec})\n"
            f"{clips} clips of {frames} frames at most in {len(missing)} shards to make: {readable(needed)} at most, "
            f"{readable(free)} free\n"
            f"about {duration(seconds * frames / processes)} (h:mm:ss) on {processes} "
            f"process{'es' if processes > 1 else ''}: {encoding * 1e3:.3g} ms a frame for the encoder, "
            f"{decoding * 1e3:.3g} ms for decoding on one of {max(1, workers)} cores"
        )
        check_space(text, needed, free, folder, "take fewer --views, --codec bf16, or fewer data.frames")
        return text

    def expected(self, view: int, index: int) -> tuple[int, int, int]:
        """Frames, height and width of a clip at most, as far as its row tells."""
        drawn = self.settings.draws.of(view, self.media[index], self.listed.rows[index].sharing)
        return expected(self.data.processor, self.media[index], *drawn)

    def measure(self) -> tuple[float, float]:
        """Seconds a frame for decoding on one core, and for the encoder."""
        dataset, frames, decoding, encoding, failure = LiveMedia(self), 0, 0.0, 0.0, ""
        for index in range(min(TRIED, self.settings.media)):
            begin = time.perf_counter()
            item = dataset[0, index]
            if isinstance(item, VideoError):
                failure = str(item)
                continue
            decoding += time.perf_counter() - begin
            for _ in range(1 if frames else 2):  # the first time warms up
                begin = time.perf_counter()
                clip = self.encode(item)
                took = time.perf_counter() - begin
            encoding, frames = encoding + took, frames + len(clip.facts["frames"])
            if index + 1 >= MEASURED:
                break
        if not frames:
            raise ValueError(f"none of the first videos could be read, the last because: {failure}")
        return decoding / frames, encoding / frames

    def write_small_files(self, folder: Path, advance: Advance) -> None:
        """Write which media the cache holds."""
        write_atomically(folder / MEDIA, self.listed.to_bytes())

    def make(self, keys: Sequence[ShardKey], folder: Path) -> Iterator[list[StoredClip]]:
        """The clips of these shards, in order, one by one: a long video fills the encoder by itself."""
        batches = ([clip] for key in keys for clip in key.clips)
        for item in decoded_ahead(LiveMedia(self), batches, _only, self.data, self.fabric, 1):
            yield [StoredClip({"failure": item.to_dict()}, {}) if isinstance(item, VideoError) else self.encode(item)]

    def encode(self, item: LoadedMedia) -> StoredClip:
        """What is stored of a medium that was read."""
        assert item.pixels is not None
        facts = {
            "frames": list(item.key[1]) or [0],  # an image is one frame
            "size": list(item.pixels.shape[2:]),
            "seconds": item.seconds,
        }
        return StoredClip(facts, {"tokens": self.encoder(item.pixels).to("cpu", STORED[self.settings.codec])})


class LiveMedia(Dataset["LoadedMedia | VideoError"]):
    """`dataset[(view, index)]` is what a live run would show of a medium in epoch `view`, or why it cannot."""

    def __init__(self, builder: TokenBuilder):
        self.media, self.listed = builder.media, builder.listed
        self.reader = MediaReader(builder.data.processor, builder.settings.draws, builder.data.deadline)

    def __getitem__(self, key: Key) -> LoadedMedia | VideoError:
        """The medium, or the reason why there is none."""
        view, index = key
        try:
            return self.reader.load(view, self.media[index], self.listed.rows[index].sharing)
        except VideoError as error:
            return error


def _only(items: list[Any]) -> Any:
    (item,) = items
    return item


def builder_of_run(run: Run, options: TokenOptions, fabric: Fabric) -> TokenBuilder:
    """The builder of the token cache that a run can train from.

    Args:
        run: of LMA or TPO, as `load_run` gives it.
        options: what the cache adds.
        fabric: device, precision and processes.

    Raises:
        ValueError: the run trains its encoder, or its conversations show nothing.
    """
    module, data = run.module, run.data
    if module.train_encoder:
        raise ValueError("model.train_encoder is true: tokens change while the encoder is trained")
    if data.mode_processors:
        raise ValueError(
            f"{module.encoder} is elastic, with modes {', '.join(data.mode_processors)}; take one out of it "
            "(liteframe extract), and build a cache for that"
        )
    if data.tokens is not None:
        raise ValueError(f"data.tokens is {data.tokens}: leave it out of the run that a cache is built for")
    encoder = LiveEncoder(module.vlm, module.encoder, data.processor, fabric)
    listed, media = MediaList.of(data.conversations)
    lossless: Codec = "bf16" if encoder.dtype == torch.bfloat16 else "fp32"
    identity: dict[str, Any] = {
        **{"vlm": module.vlm, "encoder": module.encoder, **encoder.identity},
        "precision": str(fabric.strategy.precision.precision),
        **{"frames": tuple(data.frames), "fps": data.fps, "seed": data.seed, "views": options.views},
        **{"media": len(media), "media_list": hashlib.sha256(listed.to_bytes()).hexdigest()},
        "codec": options.codec or lossless,
    }
    settings = TokenSettings(**identity, shard_clips=options.shard_clips or 1)
    if options.shard_clips is None:
        longest = settings.clip_bytes(max(data.frames), *data.processor.frame_size)
        settings = dataclasses.replace(settings, shard_clips=shard_clips(longest))
    return TokenBuilder(settings, data, listed, media, encoder, fabric)
