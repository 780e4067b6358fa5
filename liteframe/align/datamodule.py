"""Conversations for LMA: a stream of batches that a resumed run continues, with every failure counted."""

import hashlib
import json
from collections import Counter
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from liteframe.align.batch import ChatBatch, FeatureCache, collate_samples
from liteframe.align.context_parallel import ContextShares, NoKeys
from liteframe.align.conversation_files import check_files, load_conversations
from liteframe.align.conversation_rows import Conversation
from liteframe.align.dataset import ConversationDataset
from liteframe.align.elastic import ElasticConversations, budgets_of
from liteframe.align.tokens.cache import CachedMedia, TokenCache
from liteframe.data.stream import ClipStream, GroupedStream
from liteframe.data.video.process import serve_parent
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.training.failures import BadConversationsError, FailureTally
from liteframe.training.resume import refuse_other_contents


class ChatDataModule(LightningDataModule):
    """Conversations about videos -> batches for the language model.

    Args:
        processor: of the Video LLM that reads them.
        conversations: JSONL or JSON rows (InternVL, LLaVA, messages), an InternVL meta file, or a LLaVA mixture; see
            liteframe.align.conversation_files.
        frames: frame budgets; one of them is drawn for each video and epoch.
        fps: range of the frame rate that is drawn, in frames per second.
        batch_size: conversations in an optimizer step, over all devices.
        micro_batch_size: conversations on a device at a time; gradients are accumulated.
        workers: processes that decode; 0 decodes in the training process's own turn.
        deadline: seconds that reading one file may take.
        max_failure_rate: part of conversations that may fail before the run stops.
        group_by_length: let a micro-batch, and what the ranks take at the same time, hold conversations of similar
            length, out of those of the step; it decides how much is padding, and not what a step learns.
        context_parallel: devices that share the tokens of each conversation, for prompts that one has no room for; the
            encoder stays frozen. `batch_size` is a multiple of `micro_batch_size` times devices by this number.
        tokens: folder of a token cache (`liteframe cache tokens`): the encoder's tokens come from it, and no video is
            read. The encoder stays frozen; the projector may be trained.
        cache_features: keep the features of videos in memory and read no file twice for the same frames; needs a
            frozen encoder and projector, workers 0, and few different draws (a fixed fps) to be of use.
        seed: seed of order and draws.
        mode_processors: of an elastic encoder, the Video LLM's processor in each mode, one of which each sample draws,
            with as many frames as have the same tokens.

    Attributes:
        setting: names the rows.
        pairs: whether they are preference pairs.
    """

    setting = "data.conversations"
    pairs = False

    def __init__(
        self,
        processor: LiteFrameProcessor,
        conversations: str,
        frames: list[int],
        fps: tuple[float, float] = (1.0, 4.0),
        batch_size: int = 128,
        micro_batch_size: int = 1,
        workers: int = 4,
        deadline: float = 60.0,
        max_failure_rate: float = 0.05,
        group_by_length: bool = True,
        context_parallel: int = 1,
        tokens: str | None = None,
        cache_features: bool = False,
        seed: int = 0,
        mode_processors: dict[str, LiteFrameProcessor] | None = None,
    ):
        super().__init__()
        if cache_features and mode_processors:
            raise ValueError(
                "data.cache_features: with an elastic encoder, features of the same frames differ by the mode that is "
                "drawn; leave it out, or take a mode out of the encoder (liteframe extract) and align with that"
            )
        if not frames or min(frames) < 1:
            raise ValueError(f"data.frames={frames} must name at least one budget of at least one frame")
        if not 0 < fps[0] <= fps[1]:
            raise ValueError(f"data.fps={fps} must be two rising positive numbers")
        if batch_size < 1 or micro_batch_size < 1 or workers < 0:
            raise ValueError(
                f"data.batch_size={batch_size} and data.micro_batch_size={micro_batch_size} must be at least 1, "
                f"data.workers={workers} at least 0"
            )
        if cache_features and workers:
            raise ValueError(f"data.cache_features needs data.workers=0 (it is {workers}): the cache is in one process")
        if context_parallel < 1:
            raise ValueError(f"data.context_parallel={context_parallel} must be at least 1")
        if context_parallel > 1 and cache_features:
            raise ValueError("data.cache_features and data.context_parallel: a run has one of them")
        if tokens is not None and (cache_features or mode_processors):
            other = "data.cache_features keeps" if cache_features else "an elastic encoder draws its compression beside"
            raise ValueError(f"data.tokens: {other} what a token cache holds; leave one of them out")
        self.tokens = tokens
        self.processor, self.mode_processors = processor, mode_processors or {}
        self.source, self.frames, self.fps = conversations, list(frames), (float(fps[0]), float(fps[1]))
        self.batch_size, self.micro_batch_size, self.workers = batch_size, micro_batch_size, workers
        self.deadline, self.max_failure_rate, self.seed = deadline, max_failure_rate, seed
        self.group_by_length, self.cache_features = group_by_length, cache_features
        self.context_parallel = context_parallel
        self.shares: ContextShares | None = None  # of the devices that have a batch in common
        self.feature_cache = FeatureCache() if cache_features else None
        self.keeps_bytes = False  # a teacher wants the frames that are shown, too
        self.read_tokens, self.padding_tokens = 0, 0  # of all ranks' rows so far
        self.unread = Counter[str]()  # keys of rows that are passed over, and how many rows have each

    @override
    def setup(self, stage: str) -> None:
        _ = self.conversations, self.media, self.tally  # what is wrong with them ends the run before weights are loaded

    @cached_property
    def conversations(self) -> list[Conversation]:
        """The rows.

        Raises:
            BadConversationsError: they cannot be learned from.
        """
        try:
            rows = load_conversations(self.source, self.unread, pairs=self.pairs)
            if self.tokens is None:
                check_files(rows, self.max_failure_rate)
        except ValueError as error:
            raise BadConversationsError(f"--{self.setting}: {error}") from error
        return rows

    @cached_property
    def token_cache(self) -> TokenCache | None:
        """Where the encoder's tokens come from, if not from the videos; raises ValueError if it is no whole cache."""
        return None if self.tokens is None else TokenCache.open(self.tokens)

    @cached_property
    def media(self) -> CachedMedia | None:
        """What the conversations show, where a token cache holds it.

        Raises:
            BadConversationsError: it lacks some of it.
        """
        if self.token_cache is None:
            return None
        try:
            return CachedMedia(self.token_cache, self.conversations, self.processor)
        except ValueError as error:
            raise BadConversationsError(str(error)) from error

    @cached_property
    def tally(self) -> FailureTally:
        """What could not be read, counted in the run's folder."""
        return FailureTally(
            Path(self._trainer().default_root_dir) / "bad_videos.jsonl",
            self.max_failure_rate,
            remedy=f"Remove the rows of bad videos from {self.source} (`liteframe scan` finds them), "
            "or allow more with --data.max_failure_rate.",
        )

    def steps_per_epoch(self) -> int:
        """Optimizer steps that see each conversation about once."""
        return -(-len(self.conversations) // self.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream, from the trainer's global step on."""
        trainer, dataset = self._trainer(), self.dataset()
        workers = self.workers if self._reads else 0
        stream = self.stream(
            dataset,
            self.micro_batch_size,
            self.steps_per_epoch() * trainer.accumulate_grad_batches,
            rank=trainer.global_rank // self.context_parallel,
            world_size=trainer.world_size // self.context_parallel,
            position=lambda: trainer.global_step * trainer.accumulate_grad_batches,
        )
        return DataLoader(
            dataset,
            batch_sampler=stream if self._reads else NoKeys(stream),
            collate_fn=partial(
                collate_samples,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                image_token_id=self.processor.image_token_id,
            ),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=serve_parent,
            # A batch takes no longer than probing and reading each of its files; a dead worker must not hang the run.
            timeout=(2 * self.deadline * self.micro_batch_size + 60) if workers else 0,
            # The loader would draw from the global generator, which LoRA's dropout uses.
            generator=torch.Generator(),
        )

    def dataset(self) -> ConversationDataset | ElasticConversations:
        """The rows, with frames drawn by seed, epoch and video."""
        made = [
            ConversationDataset(
                self.conversations, processor, budgets=frames, fps=self.fps, seed=self.seed,
                deadline=self.deadline, cached=() if self.feature_cache is None else self.feature_cache,
                media=self.media,
            )
            for processor, frames in self.shown()
        ]  # fmt: skip
        if not self.mode_processors:
            return made[0]
        return ElasticConversations(dict(zip(self.mode_processors, made, strict=True)), self.seed)

    def shown(self) -> list[tuple[LiteFrameProcessor, list[int]]]:
        """How videos may be shown, with the frame budgets of each: in every mode, or in the one way there is."""
        if not self.mode_processors:
            return [(self.processor, self.frames)]
        return [(one, budgets_of(self.frames, self.processor, one)) for one in self.mode_processors.values()]

    def stream(self, dataset: ConversationDataset | ElasticConversations, *cut: int, **place: Any) -> ClipStream:
        """Which of them comes when: arguments as of ClipStream, from the batch size on."""
        grouped = partial(GroupedStream, step=self.batch_size, length=dataset.length)
        return (grouped if self.group_by_length else ClipStream)(len(dataset), *cut, seed=self.seed, **place)

    def count_tokens(self, read: int, padding: int) -> float:
        """Take note of the tokens of a step, over all ranks; returns the share of padding in it."""
        self.read_tokens, self.padding_tokens = self.read_tokens + read, self.padding_tokens + padding
        return padding / max(1, read + padding)

    def on_before_batch_transfer(self, batch: ChatBatch, dataloader_idx: int) -> ChatBatch:
        """Count what failed, before the batch is used; of devices that share one, the first does."""
        if self._reads:
            self.tally.record(len(batch.keys), batch.failures)
        return batch if self.shares is None else self.shares.batch(batch)

    @property
    def _reads(self) -> bool:
        """Whether this process reads files."""
        return self._trainer().global_rank % self.context_parallel == 0

    def on_after_batch_transfer(self, batch: ChatBatch, dataloader_idx: int) -> ChatBatch:
        """Bytes -> normalized frames, on the device: a quarter of what would have travelled."""
        if not batch.video_frames:
            return batch
        normalized, pixels = self.processor.normalized, batch.pixels
        frames = [*map(normalized, pixels)] if isinstance(pixels, list) else normalized(pixels)
        return batch._replace(pixels=frames, shown=pixels if self.keeps_bytes else None)

    @cached_property
    def contents(self) -> dict[str, str | None]:
        """Digests of all conversations and of the token cache, by the settings that name them; for checkpoints."""
        digest = hashlib.sha256()
        for c in self.conversations:
            row = ([medium.identity() for medium in c.media], *([vars(turn) for turn in v] for v in c.versions))
            digest.update(json.dumps(row if c.span is None else (*row, c.span)).encode())
        cache = self.token_cache
        return {
            self.setting: f"a list of {len(self.conversations)} ({digest.hexdigest()[:16]})",
            "data.tokens": None if cache is None else cache.digest,
        }

    def state_dict(self) -> dict[str, Any]:
        """What decides which sample comes when beside the settings, and what has been counted so far."""
        tokens = {"read": self.read_tokens, "padding": self.padding_tokens}
        return {"contents": self.contents, "tally": self.tally.state_dict(), "tokens": tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting.

        Raises:
            ValueError: the stream would not continue, because conversations are others.
        """
        refuse_other_contents(state_dict["contents"], self.contents)
        self.tally.load_state_dict(state_dict["tally"])
        self.read_tokens, self.padding_tokens = state_dict["tokens"]["read"], state_dict["tokens"]["padding"]

    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise ValueError("ChatDataModule works inside a Trainer: pass it as datamodule=")
        return self.trainer
