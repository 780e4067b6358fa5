"""A video that comes in as it happens, and questions about it at any time.

Frames are encoded clip by clip, with the borders of offline encoding, and handed to a memory, which decides what of
them the language model is shown. Asking changes nothing: frames that fill no clip yet are encoded for the answer alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from liteframe.answer.frame_encoder import FrameEncoder, frame_encoder
from liteframe.answer.generate import check_length, check_text, generate_text, stream_text
from liteframe.answer.intake import Frames, Intake
from liteframe.answer.key_values import PROTOTYPE, VIDEO, KeyValues
from liteframe.answer.labels import VideoLines
from liteframe.answer.memory import StreamMemory, memories
from liteframe.answer.memory.base import split_slots
from liteframe.answer.positions import Keep, Original, Positions, Stretch, Time, check_positions, stretched
from liteframe.answer.prefill import Prefill, Prompt, cache_name, whole_prompt
from liteframe.answer.reader import Reader
from liteframe.answer.saved_session import read_session, write_session
from liteframe.models.vlm.chat import PLACEHOLDER, question_prompt
from liteframe.models.vlm.mrope import Mrope
from liteframe.models.vlm.trained_memory import check_memory
from liteframe.reduce.base import Tokens


@dataclass(frozen=True)
class Answer:
    """What the model says, how many frames had come by then, and how many tokens of them the language model read."""

    text: str
    frames: int
    tokens: int


@dataclass(frozen=True)
class SessionSize:
    """What a session holds: tokens of its memory, and bytes of memory, waiting frames and KV cache."""

    tokens: int
    bytes: int


class StreamSession:
    """Ask a Video LLM about frames that come one after another.

    Args:
        model: of `load_video_llm`, in eval mode, on its device.
        processor: of `load_video_llm`.
        memory: what remembers the video, such as `memories["all"]()`, the default; it is emptied.
        fps: frames a second that are taken, where the times of frames are told.
        system: a system message; None sends none.
        labels: what stands before the tokens of a slot: "frames" (as the model was trained), "seconds" or "none".
        positions: what becomes of the positions of a stream: `Keep()`, `Compact()`, `Stretch(2)`, `Time(4)`; of what an
            `encoder` that reduces has left, `Original()`.
        encoder: from frames to tokens; None is the model's own way, `frame_encoder(model, processor)`.
        prefill: whether the language model reads slots into its KV cache as they come, so that a question waits for
            less; needs a memory that only appends. None does so on a GPU where the memory allows it. On a CPU, encoding
            and prefill compete for the same cores, and prefill in parts is slower (benchmarks/latency.md).

    Attributes:
        clip_frames: how many are encoded together.
        tokens_per_frame: that the encoder has made of the frames of this video; None before the first.

    Raises:
        ValueError: fps is not positive, the system message holds a control token, the memory does not only append, its
            budget is below one slot, or the model's adapter was trained for another memory.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        memory: StreamMemory | None = None,
        *,
        fps: float = 1.0,
        system: str | None = None,
        labels: str = "frames",
        positions: Positions = Keep(),  # noqa: B008  # a frozen one
        encoder: FrameEncoder | None = None,
        prefill: bool | None = None,
    ) -> None:
        if not fps > 0:
            raise ValueError(f"fps={fps}: a positive number of frames a second is needed")
        check_text(system or "", "system message")
        self.memory = memories["all"]() if memory is None else memory
        self._encoder = frame_encoder(model, processor) if encoder is None else encoder
        axes = self._encoder.mrope
        check_positions(positions, axes, model.config.model_type, self.memory.name, self.memory.of_cache)
        self.model = stretched(model, positions.factor) if isinstance(positions, Stretch) else model
        self.tokenizer, self.positions = processor.tokenizer, positions
        self.fps, self.system = fps, system
        if prefill and not self.memory.append_only:
            raise ValueError(f"prefill=True needs a memory that only appends, which {self.memory.name!r} does not")
        self.prefill = self.memory.append_only and model.device.type == "cuda" if prefill is None else prefill
        if isinstance(positions, Original):
            self.prefill = False  # a reducer sees the whole video before there is a prompt
        self.clip_frames = self._encoder.clip_frames
        mrope = Mrope(positions.tokens_per_second) if isinstance(positions, Time) else None
        self._lines = VideoLines(self._encoder, self.tokenizer, labels, mrope)
        self._cache_name = cache_name(model.model.language_model)
        on_side = self.prefill and model.device.type == "cuda"  # there it overlaps with prefill
        self._stream = torch.cuda.Stream(model.device) if on_side else None
        check_memory(model, self.memory.name, self.memory.trained)
        self.memory.load_state({})
        self.memory.start(self._reader())
        if self.memory.budget is not None:
            self._check_budget()
        self.reset()

    def reset(self) -> None:
        """Start a new video: memory, waiting frames and KV cache are emptied, settings stay."""
        self.memory.load_state({})
        self._intake = Intake(self._encoder, self.fps)
        self._shape: tuple[int, int] | None = None  # rows and columns of a slot's grid of tokens
        self._partial: Tokens | None = None  # of the frames that wait, for questions
        self.tokens_per_frame: float | None = None
        self._prefilled: Prefill | None = None

    @property
    def frames(self) -> int:
        """How many were taken so far."""
        return self._intake.frames

    @property
    def last_time(self) -> float | None:
        """Seconds of the last of them; None before the first."""
        return self._intake.last_time

    @torch.inference_mode()
    def add(self, frames: np.ndarray, times: Sequence[float] | None = None, *, every: bool = False) -> None:
        """See further frames, any number of them.

        Args:
            frames: uint8 [n,H,W,3].
            times: seconds of each, ascending over all calls, from any start; the first is taken, then `fps` a second.
                None takes all, as frames that come at `fps`.
            every: take all frames that have times, too.

        Raises:
            ValueError: not such frames or times, frames of another shape than before where the model keeps their
                aspect ratio, or (with prefill) more than the language model reads.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"expected frames [n,H,W,3] uint8, got {list(frames.shape)} {frames.dtype}")
        before = self.fork()
        try:
            for clips in self._intake.clips(frames, times, every):
                self._remember(self._encode(clips), len(clips.pixels) // self.clip_frames)
            if len(frames):
                self._partial = None
        except BaseException:  # what failed half-way leaves no half
            self.__dict__.update(before.__dict__)
            raise

    def ask(self, question: str, *, max_new_tokens: int = 32) -> Answer:
        """A greedy answer to a question about what was seen so far; before the first frame, to its words alone.

        Raises:
            ValueError: the question holds a control token, or is too long with the video and the answer.
        """
        request, tokens = self._request(question, max_new_tokens)
        return Answer(generate_text(self.model, self.tokenizer, request), self.frames, tokens)

    def stream(self, question: str, *, max_new_tokens: int = 32) -> Iterator[str]:
        """As ask, piece by piece as the words are found; `"".join(...)` is the whole."""
        request, _ = self._request(question, max_new_tokens)
        return stream_text(self.model, self.tokenizer, request)

    @torch.inference_mode()
    def prompt(self, question: str) -> Prompt:
        """What the language model would read for a question, for a server that takes embeddings.

        Raises:
            ValueError: the question holds a control token, the memory keeps entries of a KV cache, or positions are not
                counted like those of words: none of these can be sent.
        """
        check_text(question)
        shown = self._shown(question)
        if isinstance(shown, KeyValues):
            raise ValueError(f"memory {self.memory.name!r} keeps entries of a KV cache, and no prompt holds them")
        whole = whole_prompt(self.model, self.tokenizer, self._lines, shown, question, self.system)
        if whole.position_ids is not None or isinstance(self.positions, Original):
            kind = f"{self.positions} of a {self.model.config.model_type}"
            raise ValueError(f"{kind}: its positions are not counted one by one, and embeddings do not tell them")
        return whole

    @torch.inference_mode()
    def score(self, question: str, candidates: Sequence[str]) -> Tensor:
        """Log-probabilities, float32 [candidates], that the answer starts with the first token of each candidate.

        Raises:
            ValueError: two candidates start with the same token, or as of ask.
        """
        firsts = self._first_tokens(candidates)
        request, _ = self._request(question, 1)
        return self._scored(request, firsts)

    @torch.inference_mode()
    def score_all(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Tensor]:
        """As score, of several questions with candidates of their own; what they are shown alike is read only once.

        Raises:
            ValueError: as of score.
        """
        read: list[tuple[Tokens, Prefill]] = []
        scores = []
        for question, candidates in asked:
            check_text(question)
            shown = None if isinstance(self.positions, Original) else self._shown(question)
            if not isinstance(shown, Tokens):
                scores.append(self.score(question, candidates))
                continue
            begun = next((begun for before, begun in read if _alike(before, shown)), None)
            if begun is None:
                begun = self._new_prefill()
                begun.extend(shown)
                read.append((shown, begun))
            _, tail = question_prompt(question, self.system).split(PLACEHOLDER)
            scores.append(self._scored(self._finished(begun.fork(), tail, 1), self._first_tokens(candidates)))
        return scores

    def _first_tokens(self, candidates: Sequence[str]) -> list[int]:
        """Number of the first token of each.

        Raises:
            ValueError: two start with the same token.
        """
        firsts = [self.tokenizer(text, add_special_tokens=False)["input_ids"][:1] for text in candidates]
        if [] in firsts or len({first[0] for first in firsts}) < len(firsts):
            raise ValueError(f"the candidates {list(candidates)} do not start with tokens of their own")
        return [first[0] for first in firsts]

    def _scored(self, request: dict[str, Any], firsts: list[int]) -> Tensor:
        """Log-probabilities of tokens after a request, float32 [candidates]."""
        if "inputs_embeds" in request:
            inputs = {key: value for key, value in request.items() if key in ("inputs_embeds", "position_ids")}
        else:
            inputs = {"input_ids": request["input_ids"][:, -1:], self._cache_name: request[self._cache_name]}
            if "position_ids" in request:
                inputs["position_ids"] = request["position_ids"][..., -1:]
        hidden = self.model.model.language_model(**inputs).last_hidden_state[:, -1]  # [1,D]
        log_probabilities = self.model.lm_head(hidden)[0].float().log_softmax(-1)  # [vocabulary]
        return log_probabilities[firsts].cpu()

    def size(self) -> SessionSize:
        """Tokens and bytes held now, for those who must bound them."""
        waiting = 0 if self._intake.waiting is None else self._intake.waiting.pixels.nbytes
        cached = 0 if self._prefilled is None else self._prefilled.bytes
        return SessionSize(self.memory.tokens, self.memory.bytes + waiting + cached)

    def fork(self) -> StreamSession:
        """A session that goes on from here; neither sees what the other is given. Tensors are shared."""
        other = object.__new__(StreamSession)
        other.__dict__.update(self.__dict__)
        other.memory, other._intake = self.memory.fork(), self._intake.fork()
        other._prefilled = None if self._prefilled is None else self._prefilled.fork()
        return other

    def with_system(self, system: str | None) -> StreamSession:
        """A fork that sends another system message.

        Raises:
            ValueError: the message holds a control token, or the memory is of what was read behind this one.
        """
        check_text(system or "", "system message")
        other = self.fork()
        other.system, other._prefilled = system, None
        other.memory.start(other._reader())
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the session, without the model, as one safetensors file: whole or not at all."""
        tensors = {f"memory.{name}": tensor.contiguous() for name, tensor in self.memory.state().items()}
        told, waiting = self._intake.state()
        write_session(Path(path), {**self._settings(), **told, "shape": self._shape}, {**tensors, **waiting})

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with a saved session in place of what this one holds.

        Raises:
            ValueError: no such file, or that of a session with another model, memory or setting.
        """
        facts, tensors = read_session(Path(path), self._settings())
        self.reset()
        device = self.model.device
        state = {name.removeprefix("memory."): t for name, t in tensors.items() if name.startswith("memory.")}
        self.memory.load_state({name: t.to(device) if name == "tokens" else t for name, t in state.items()})
        self._intake.load_state(facts, tensors)
        self._shape = facts["shape"] and tuple(facts["shape"])

    def _settings(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "model": config.model_type,
            "width": config.text_config.hidden_size,
            "clip_frames": self.clip_frames,
            "memory": self.memory.name,
            "memory_settings": self.memory.settings(),
            "fps": self.fps,
            "labels": self._lines.labels,
            "positions": repr(self.positions),
        }

    @torch.inference_mode()
    def _check_budget(self) -> None:
        blank = np.zeros((self.clip_frames, 64, 64, 3), np.uint8)
        slots = self._encoded(self._encoder.resized(blank), 0).slots
        self.memory.check(slots[0][2], len(slots))

    def _remember(self, encoded: Tokens, clips: int) -> None:
        for clip in split_slots(encoded, len(encoded.slots) // clips):
            self.memory.add(clip)
        if self.prefill and isinstance(shown := self._context(self.memory, ""), Tokens):
            self._prefill().extend(shown)

    def _head(self) -> str:
        """What a prompt says before the video."""
        return question_prompt("", self.system).split(PLACEHOLDER)[0]

    def _reader(self) -> Reader:
        return Reader(self.model, self.tokenizer, self._lines, self._head(), self.positions)

    def _prefill(self) -> Prefill:
        if self._prefilled is None:
            self._prefilled = self._new_prefill()
        return self._prefilled

    def _new_prefill(self) -> Prefill:
        return Prefill(self.model, self.tokenizer, self._lines, self._head())

    def _encode(self, clips: Frames) -> Tokens:
        frames, first_frame, seconds = clips
        encoded = self._encoded(frames, first_frame)
        self._shape = encoded.shape
        if self.tokens_per_frame is None or len(frames) % self.clip_frames == 0:
            self.tokens_per_frame = len(encoded.tokens) / len(frames)
        times = [(seconds[first - first_frame], seconds[last - first_frame]) for first, last, _ in encoded.slots]
        return replace(encoded, times=times)

    def _encoded(self, frames: Tensor, first_frame: int) -> Tokens:
        if self._stream is None:
            return self._encoder.encode(frames, first_frame)
        with torch.cuda.stream(self._stream):
            encoded = self._encoder.encode(frames, first_frame)
        current = torch.cuda.current_stream(self.model.device)
        current.wait_stream(self._stream)
        encoded.tokens.record_stream(current)
        return encoded

    @torch.inference_mode()
    def _shown(self, question: str) -> Tokens | KeyValues | None:
        """What the language model sees; frames that wait are remembered by a fork, which is thrown away."""
        if (waiting := self._intake.waiting) is None:
            return self._context(self.memory, question)
        if self._partial is None:
            self._partial = self._encode(waiting)
        memory = self.memory.fork()
        memory.add(self._partial)
        return self._context(memory, question)

    def _context(self, memory: StreamMemory, question: str) -> Tokens | KeyValues | None:
        shown = memory.context(question)
        return replace(shown, shape=self._shape) if isinstance(shown, Tokens) else shown

    @torch.inference_mode()
    def _request(self, question: str, max_new_tokens: int) -> tuple[dict[str, Any], int]:
        """Arguments of `generate`, and how many tokens of the video the language model reads or has read."""
        check_text(question)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: an answer has at least one token")
        shown = self._shown(question)
        _, tail = question_prompt(question, self.system).split(PLACEHOLDER)
        if isinstance(shown, KeyValues):
            return self._reader().question(shown.fork(), tail, max_new_tokens), shown.count(VIDEO, PROTOTYPE)
        if shown is not None and self.prefill:
            if isinstance(kept := self._context(self.memory, question), Tokens):
                self._prefill().extend(kept)  # nothing new but after load and with_system
            prompt = self._prefill().fork()
            prompt.extend(shown)
            return self._finished(prompt, tail, max_new_tokens), len(shown.tokens)
        whole = whole_prompt(self.model, self.tokenizer, self._lines, shown, question, self.system)
        length, position_ids = whole.ids.shape[1], whole.position_ids
        if isinstance(self.positions, Original) and shown is not None:
            among = None if self._partial is None else self._partial.among  # the whole video waits
            places = self._lines.original_places(shown, among, whole.ids[0].tolist(), question, self.system)
            position_ids, length = torch.tensor([places], device=whole.embeddings.device), places[-1] + 1
        check_length(self.frames, length, max_new_tokens, self.model)
        mask = torch.ones_like(whole.ids).to(whole.embeddings.device)
        request = {"inputs_embeds": whole.embeddings, "attention_mask": mask, "max_new_tokens": max_new_tokens}
        return _with_positions(request, position_ids), 0 if shown is None else len(shown.tokens)

    def _finished(self, prompt: Prefill, tail: str, max_new_tokens: int) -> dict[str, Any]:
        """Arguments of `generate` for an answer to a text behind what was read; reads all of it but the last token."""
        prompt.finish(tail)
        check_length(self.frames, len(prompt.ids), max_new_tokens, self.model)
        ids = torch.tensor([prompt.ids], device=self.model.device)
        inputs = {"input_ids": ids, self._cache_name: prompt.cache}
        request = {**inputs, "attention_mask": torch.ones_like(ids), "max_new_tokens": max_new_tokens}
        return _with_positions(request, prompt.position_ids())


def _alike(one: Tokens, other: Tokens) -> bool:
    """Whether they make the same prompt."""
    same = (one.slots, one.times, one.shape) == (other.slots, other.times, other.shape)
    return same and torch.equal(one.place, other.place) and torch.equal(one.tokens, other.tokens)


def _with_positions(request: dict[str, Any], position_ids: Tensor | None) -> dict[str, Any]:
    return request if position_ids is None else {**request, "position_ids": position_ids}
