"""Loads an export where liteframe cannot be imported, and computes with it: `python -P reload_child.py JOB.json`.

The job names the folder, the frames of each video ([T,H,W,3] uint8), and for Video LLMs the questions. Outputs go to a
safetensors file, what this process ran with to a JSON file. Imports nothing of liteframe: it runs as a stranger would.
"""

import importlib.abc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

BLOCKED = ("liteframe", "liteframe_kernels", "liteframe_export")


class Blocker(importlib.abc.MetaPathFinder):
    """Makes imports of liteframe fail, as they do where it is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse our packages, leave the others to the finders that follow."""
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}: an export must load without it", name=name)


def block_liteframe() -> None:
    """From here on, importing liteframe fails in this process."""
    if loaded := [name for name in BLOCKED if name in sys.modules]:
        raise RuntimeError(f"{', '.join(loaded)} is imported already")
    sys.meta_path.insert(0, Blocker())


def run_encoder(folder: str, videos: list[Any]) -> dict[str, Any]:
    """Pixels and features of each video, [1,T,3,H,W] and [1,T',h,w,C]."""
    import torch
    from transformers import AutoModel, AutoVideoProcessor

    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
    outputs = {}
    for number, frames in enumerate(videos):
        pixels = processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
        with torch.inference_mode():
            outputs[f"features.{number}"] = model(pixels).last_hidden_state
        outputs[f"pixels.{number}"] = pixels
    return outputs


def run_vlm(folder: str, videos: list[Any], questions: list[str], new_tokens: int) -> dict[str, Any]:
    """Load an exported Video LLM and put one question to it a video; what `ask` returns."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    return ask(model, AutoProcessor.from_pretrained(folder, trust_remote_code=True), videos, questions, new_tokens)


def ask(model: Any, processor: Any, videos: list[Any], questions: list[str], new_tokens: int) -> dict[str, Any]:
    """Ask one question a video: the prompt, pixels (flat), logits [tokens,V] without padding, greedy answers [B,L+new].

    Computed in float32 whatever the weights are stored in. Without new tokens there are no answers.
    """
    import torch

    chats = [
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}] for question in questions
    ]
    prompts = processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=prompts, videos=videos)
    with torch.inference_mode(), widened(model):
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
        told = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
        frames = inputs["pixel_values_videos"]  # one tensor, or one a video where their sizes differ
        told |= {"pixels": torch.cat([video.flatten() for video in frames]), "logits": logits}
        if not new_tokens:
            return told
        # The tokenizer is for strings that end an answer, which a checkpoint's generation_config may have.
        settings = {"do_sample": False, "max_new_tokens": new_tokens, "tokenizer": processor.tokenizer}
        answers = model.generate(**inputs, **settings)
    return {**told, "answers": answers}


@contextmanager
def widened(model: Any) -> Iterator[None]:
    """Let a Video LLM that is stored in 16 bits compute in float32 without a whole second copy in memory.

    The layers of its language model are float32 while they run and no longer; the rest is made so, and stays.
    """
    import torch

    narrow: dict[Any, Any] = {}

    def widen(module: Any, _: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight.dtype in (torch.bfloat16, torch.float16):
                narrow[weight], weight.data = weight.data, weight.data.float()

    def restore(module: Any, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            weight.data = narrow.pop(weight, weight.data)

    hooks = []
    for name, module in model.named_modules():
        if "language_model.layers." in name:
            hooks.append(module.register_forward_pre_hook(widen))
            hooks.append(module.register_forward_hook(restore, always_call=True))
        else:
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.float()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    """Do the job that the file on the command line describes."""
    block_liteframe()
    from safetensors.torch import load_file, save_file

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    inputs = load_file(job["inputs"])
    videos = [inputs[f"video.{number}"].numpy() for number in range(len(inputs))]
    if job["kind"] == "encoder":
        outputs = run_encoder(job["folder"], videos)
    else:
        outputs = run_vlm(job["folder"], videos, job["questions"], job["new_tokens"])
    save_file({name: tensor.contiguous() for name, tensor in outputs.items()}, job["outputs"])
    environment = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    environment["python"] = sys.version.split()[0]
    Path(job["environment"]).write_text(json.dumps(environment), encoding="utf-8")


if __name__ == "__main__":
    main()
