"""Answers of the real vLLM against transformers' own `generate`, token by token; vllm_check.py calls it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from liteframe_serving.prompts import video_ids
from PIL import Image
from vllm import LLM, SamplingParams

from liteframe.models.vlm.load import load_video_llm

NEW_TOKENS = 16
# Largest difference of two log probabilities of one token, where both see the same tokens before it.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5}
LONGEST = 64
QUESTION = "Which way does the red circle move?"


def noise(number: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@dataclass
class Case:
    name: str
    content: str
    videos: list[np.ndarray] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)

    @property
    def prompt(self) -> str:
        return f"<|im_start|>user\n{self.content}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def request(self) -> dict[str, Any]:
        data = {"video": self.videos, "image": [Image.fromarray(image) for image in self.images]}
        return {"prompt": self.prompt, "multi_modal_data": {name: items for name, items in data.items() if items}}


def make_cases(image_token: str) -> list[Case]:
    shapes = [(1, 48, 64), (4, 64, 64), (5, 90, 50), (23, 64, 200), (LONGEST, 64, 64)]
    cases = [Case(f"T={shape[0]}", f"<video>\n{QUESTION}", [noise(i, *shape, 3)]) for i, shape in enumerate(shapes)]
    two = [noise(7, 6, 64, 64, 3), noise(8, LONGEST, 40, 80, 3)]
    still, another = noise(9, 64, 64, 3), noise(10, 30, 64, 3)
    return [
        *cases,
        Case("two videos", f"<video>\n<video>\n{QUESTION}", two),
        Case("image", f"{image_token}\nWhat colour is the square?", [], [still]),
        Case("image, video, image", f"{image_token}\n<video>\n{image_token}\n{QUESTION}", two[:1], [still, another]),
        Case("text alone", QUESTION),
    ]


@torch.no_grad()
def expected_ids(model: Any, processor: Any, case: Case) -> tuple[Any, list[int]]:
    """transformers' prompt, and its greedy answer."""
    inputs = processor(text=case.prompt, videos=case.videos or None, images=case.images or None).to(model.device)
    ids = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    return inputs, ids[0, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def log_probabilities(model: Any, inputs: Any, answer: list[int]) -> torch.Tensor:
    """[tokens of the answer, vocabulary] of transformers' model, along an answer that it is given."""
    first = model(**inputs, use_cache=True, logits_to_keep=1)
    # As embeddings: a random model's answer may hold the image token, which in a prompt stands for features.
    embedded = model.get_input_embeddings()(torch.tensor([answer[:-1]], device=model.device))
    mask = torch.ones(1, inputs["input_ids"].shape[1] + len(answer) - 1, device=model.device)
    rest = model(inputs_embeds=embedded, attention_mask=mask, past_key_values=first.past_key_values)
    logits = torch.cat([first.logits[0], rest.logits[0]])
    return logits.float().log_softmax(-1).cpu()


def compare(case: Case, output: Any, model: Any, processor: Any, dtype: str) -> tuple[float, bool]:
    """Largest difference of log probabilities, and whether all tokens are those of `generate`."""
    inputs, expected = expected_ids(model, processor, case)
    assert list(output.prompt_token_ids) == inputs["input_ids"][0].tolist(), case.name
    (found,) = output.outputs
    answer = list(found.token_ids)
    ours = log_probabilities(model, inputs, answer)
    theirs = torch.tensor([step[token].logprob for step, token in zip(found.logprobs, answer, strict=True)])
    difference = float((ours[range(len(answer)), answer] - theirs).abs().max())
    assert difference <= TOLERANCE[dtype], (case.name, difference)
    # The end of the answer is forbidden to both, so that all answers are of one length.
    ours[:, model.generation_config.eos_token_id] = -torch.inf
    assert float((ours.amax(-1) - ours[range(len(answer)), answer]).max()) <= TOLERANCE[dtype], case.name
    # Where bfloat16 decides a near tie in another way, the answers part; float32 must not.
    assert answer == expected or dtype != "float32", (case.name, answer, expected)
    return difference, answer == expected


def compare_answers(folder: Path, dtype: str) -> Iterator[tuple[str, Any]]:
    """Lines that say what is equal. vLLM comes first: it starts its processes before this one uses the GPU."""
    model, processor = load_video_llm(folder, dtype=getattr(torch, dtype))
    cases = make_cases(processor.image_token)
    longest = len(video_ids(processor, LONGEST))
    chunk = longest // 2  # so that a long video is read in several steps
    llm = LLM(
        str(folder), dtype=dtype, enforce_eager=True, max_model_len=4 * longest, max_num_batched_tokens=chunk,
        limit_mm_per_prompt={"video": 2, "image": 2}, kv_cache_memory_bytes=1 << 30, enable_prefix_caching=True,
    )  # fmt: skip
    settings = SamplingParams(temperature=0, min_tokens=NEW_TOKENS, max_tokens=NEW_TOKENS, logprobs=1)
    alone = [llm.generate(case.request, settings, use_tqdm=False)[0] for case in cases]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for case, output in zip(cases, alone, strict=True):
        difference, same = compare(case, output, model, processor, dtype)
        tokens = f"{len(output.prompt_token_ids)} + {len(output.outputs[0].token_ids)} tokens"
        yield f"answer, {case.name}", f"{tokens}, {'equal' if same else 'a near tie'}, log p within {difference:.0e}"
    together = llm.generate([case.request for case in cases], settings, use_tqdm=False)
    cached = [output.num_cached_tokens for output in together]
    assert max(cached) > 0
    if dtype == "float32":
        assert [output.outputs[0].token_ids for output in together] == [o.outputs[0].token_ids for o in alone]
    for case, output in zip(cases, together, strict=True):
        compare(case, output, model, processor, dtype)
    yield f"all {len(cases)} again in one batch, chunks of {chunk}", f"equal; tokens from the prefix cache: {cached}"
    answers = {tuple(output.outputs[0].token_ids) for output in alone}
    assert len(answers) > 1, "the same answer to everything proves nothing"
    yield "different answers", len(answers)
