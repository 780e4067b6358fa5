"""The model class that lmms-eval drives: its requests go through the code of `liteframe eval`.

Imported by lmms-eval only (see lmms_plugin).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from liteframe.answer.generate import check_length, check_text, generate_text
from liteframe.answer.session import StreamSession
from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import DecodeProcess
from liteframe.evaluate.asking import Asking, System, read_video
from liteframe.evaluate.benchmarks.base import Question
from liteframe.models.vlm.chat import IMAGE, user_prompt
from liteframe.models.vlm.load import load_video_llm
from liteframe.pictures import PictureError, rgb

LONGEST = 1024  # new tokens, where a task says nothing (lmms-eval's custom)
# What greedy decoding has of the settings that change answers; nothing (None, 0, no list) is the same.
GREEDY: dict[str, Any] = {
    "do_sample": False, "temperature": 0, "num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1,
    "no_repeat_ngram_size": 0, "min_new_tokens": 0, "min_length": 0, "suppress_tokens": [], "bad_words_ids": [],
}  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """One question of a task.

    Attributes:
        visual: path of a video, list of images, or None.
        text: the words.
        marked: the words with `<image>` where the task puts its images.
        system: a system message.
    """

    visual: Any
    text: str
    marked: str
    system: str | None


Seen = StreamSession | list[np.ndarray]  # a video, or images uint8 [H,W,3], each of which is looked at by itself


class LiteFrameChat(lmms):
    """A Video LLM with or without a LiteFrame encoder.

    Args:
        pretrained: as `--vlm` of `liteframe eval`.
        encoder: as `--encoder`.
        adapter: as `--adapter`.
        frames: as `--frames`; at most so many a video.
        fps: as `--fps`.
        dtype: as `--dtype`.
        deadline: as `--deadline`.
        device: "cuda", "cpu", ...; default: this process's GPU where there is one.
        batch_size: 1; questions are not batched, so that a reply depends on its question alone.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        encoder: str | None = None,
        adapter: str | None = None,
        frames: int = 32,
        fps: float | None = None,
        dtype: str = "auto",
        deadline: float = 300.0,
        device: str | None = None,
        batch_size: int | str = 1,
        **unknown: Any,
    ):
        super().__init__()
        extra = {name: value for name, value in unknown.items() if name != "max_batch_size" and value is not None}
        if extra:
            raise ValueError(f"--model_args has unknown {sorted(extra)}")
        if int(batch_size) != 1:
            raise ValueError(f"--batch_size {batch_size}: LiteFrame asks one question at a time; use 1")
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        cuda = torch.cuda.is_available() and device in (None, "cuda")
        self.device = torch.device(f"cuda:{state.local_process_index}" if cuda else device or "cpu")
        self.model, self.processor = load_video_llm(pretrained, encoder=encoder, adapter=adapter, dtype=dtype)
        self.model.to(self.device)
        self.system = System.of(self.model, self.processor)
        self.asking = Asking(int(frames), None if fps is None else float(fps), "{question}", False, 1, float(deadline))
        self.failures: dict[str, str] = {}

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy replies in the order of the requests; a video that cannot be read gives "", and a line in the log."""
        jobs = []
        for number, instance in enumerate(requests):
            _, to_messages, settings, doc, task, split = instance.args
            request = read_chat(to_messages(self.task_dict[task][split][doc]))
            check_request(request, settings)  # before an hour has gone into the others
            jobs.append((number, request, settings))
        jobs.sort(key=lambda job: str(job[1].visual) if isinstance(job[1].visual, str) else "")
        replies = [""] * len(jobs)
        seen: dict[str, Seen | None] = {}  # the video at hand
        with DecodeProcess(self.asking.deadline) as decoder:
            for number, request, settings in tqdm(jobs, desc="liteframe", disable=self.rank != 0):
                key = request.visual if isinstance(request.visual, str) else f"images of request {number}"
                if key not in seen:
                    seen = {key: self._see(decoder, request.visual)}
                shown = seen[key]
                replies[number] = "" if shown is None else self._reply(shown, request, settings)
        return replies

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Each round's greedy reply; a task makes the next round's messages from the replies so far."""
        for instance in requests:
            _, to_messages, settings, doc, task, split = instance.args
            check_request(read_chat(to_messages(self.task_dict[task][split][doc])), settings)
        results = []
        with DecodeProcess(self.asking.deadline) as decoder:
            for instance in tqdm(requests, desc="liteframe", disable=self.rank != 0):
                _, to_messages, settings, doc, task, split = instance.args
                results.append(self._rounds(decoder, to_messages, self.task_dict[task][split][doc], settings))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refused: lmms-eval asks chat models for text only.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "tasks of output_type loglikelihood or multiple_choice are for lmms-eval's simple models; "
            "use the task with output_type generate_until"
        )

    def _rounds(self, decoder: DecodeProcess, to_messages: Any, doc: Any, settings: dict[str, Any]) -> list[str]:
        replies: list[str] = []
        info: Any = None
        shown: Seen | None = None
        messages, ended = to_messages(doc), False
        while not ended:
            request = read_chat(messages, need_visual=not replies)
            check_request(request, settings)
            if request.visual is not None:
                shown = self._see(decoder, request.visual)
            replies.append("" if shown is None else self._reply(shown, request, settings))
            messages, ended, replies, info = to_messages(
                doc, round_idx=len(replies), previous_output=replies, previous_round_info=info
            )
            replies = list(replies)
        return replies

    def _see(self, decoder: DecodeProcess, visual: Any) -> Seen | None:
        """A session that was shown a video, or images; None where they cannot be read."""
        try:
            if not isinstance(visual, str):
                return [rgb(image) for image in visual]
            video = read_video(self.system.encoder, decoder, Question("", visual, "", ""), self.asking)
        except (VideoError, PictureError) as error:
            self.failures[visual if isinstance(visual, str) else f"image {len(self.failures) + 1}"] = str(error)
            logger.error(f"counted as a wrong answer, no reply: {error}")
            return None
        return self.system.look(video.frames, video.times)

    def _reply(self, shown: Seen, request: ChatRequest, settings: dict[str, Any]) -> str:
        longest = int(settings.get("max_new_tokens", LONGEST))
        if isinstance(shown, list):
            text = self._about_images(shown, request, longest)
        else:
            session = shown if request.system == shown.system else shown.with_system(request.system)
            text = session.ask(request.text, max_new_tokens=longest).text
        until = settings.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop, 1)[0] if stop else text
        return text

    def _about_images(self, images: list[np.ndarray], request: ChatRequest, longest: int) -> str:
        """The greedy answer to words among images, each of which has tokens of its own, as in training."""
        marks = "" if IMAGE in request.marked else f"{IMAGE}\n" * len(images)  # a later round brings none
        prompt = user_prompt(marks + request.marked, request.system).replace(IMAGE, self.processor.image_token)
        inputs = self.processor(text=[prompt], images=images, return_tensors="pt").to(self.device)
        check_length(len(images), inputs["input_ids"].shape[1], longest, self.model)
        tokenizer = self.processor.tokenizer
        return generate_text(self.model, tokenizer, {**inputs, "max_new_tokens": longest})


def check_request(request: ChatRequest, settings: dict[str, Any]) -> None:
    """Refuse what is not greedy decoding of plain words.

    Raises:
        ValueError: the task asks for sampling, beams, penalties or bans, or its text holds control tokens.
    """
    check_text(request.text)
    check_text(request.system or "", "system message")
    changed = [name for name, value in GREEDY.items() if (settings.get(name) or value) != value]
    if changed:
        raise ValueError(
            f"generation_kwargs {settings}: LiteFrame answers greedily; use temperature 0 and 1 beam, and leave out "
            f"what changes answers ({', '.join(changed)})"
        )


def read_chat(messages: Sequence[dict[str, Any]], need_visual: bool = True) -> ChatRequest:
    """The one question in a chat: an optional system message and one user turn with a video or images.

    Raises:
        ValueError: other roles, several videos, sound, or nothing to look at.
    """
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ValueError(f"the task's chat has turns of {roles}; one user turn, after a system message or not, is read")
    videos: list[Any] = []
    images: list[Any] = []
    texts: list[str] = []
    marked: list[str] = []
    places = {"text": texts, "video": videos, "image": images}
    for part in messages[-1]["content"]:
        if part["type"] not in places:
            raise ValueError(f"the task shows {part['type']}; text, images and one video are read")
        places[part["type"]].append(part["text"] if part["type"] == "text" else part["url"])
        if part["type"] != "video":
            marked.append(part["text"] if part["type"] == "text" else IMAGE)
    if len(videos) > 1 or (videos and images) or (need_visual and not videos and not images):
        raise ValueError(
            f"the task shows {len(videos)} videos and {len(images)} images; one video, or images, are read"
        )
    if videos and not isinstance(videos[0], str):
        raise ValueError(f"the task gives its video as {type(videos[0]).__name__}; the path of a file is read")
    if any(isinstance(image, str) for image in images):
        raise ValueError("the task gives images as paths; opened images (PIL) are read")
    system = None
    if roles[0] == "system":
        content = messages[0]["content"]
        system = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return ChatRequest(videos[0] if videos else images or None, "\n".join(texts), "\n".join(marked), system)
