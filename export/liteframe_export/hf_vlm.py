"""A Video LLM with a LiteFrame encoder as a Hugging Face model folder with its own code, LoRA merged."""

import os
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from liteframe.files import write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.vlm.adapter import merge_adapter
from liteframe.models.vlm.family import family_of
from liteframe.texts import read_json
from liteframe_export import card, verify
from liteframe_export.bundle import bundle, file_name
from liteframe_export.files import add_auto_map, save_weights, staged
from liteframe_export.provenance import Parts, checkpoint_license, load_parts, run_report
from liteframe_export.reload_child import ask

QUESTIONS = ["What happens in the video?", "How many objects are there, and which of them moves first?"]
NEW_TOKENS = 16
MLX = "mlx_model.py"  # what mlx-vlm, on a Mac, builds the model with; config.json names it as `model_file`


def export_vlm(parts: Parts, out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a Video LLM as a folder that `AutoModelForImageTextToText` and `AutoProcessor` load without liteframe.

    The weights keep the dtype of the InternVL. Needs memory for the whole model in that dtype, and for its largest
    layer in float32.

    Args:
        parts: InternVL, encoder and adapter (see parts_of_run for those of an LMA run).
        out: the new folder.

    Returns:
        The parity report, also saved as parity.json.

    Raises:
        ValueError: a part is not what it should be, the adapter belongs to other weights, `out` exists, or the
            reloaded export computes something else than the trained model; then nothing is written.
    """
    with staged(out) as folder:
        parity, encoder = write_and_check(parts, folder)
        write_json(folder / "parity.json", parity)
        summary = card.VlmSummary(
            name=Path(out).name,
            vlm=parts.vlm,
            license=checkpoint_license(parts.vlm),
            adapter=parts.adapter,
            encoder=encoder,
            encoder_report=run_report(Path(parts.encoder).resolve().parent),
            adapter_report=parts.adapter_report,
        )
        (folder / "README.md").write_text(card.vlm_card(summary, parity), encoding="utf-8")
    return parity


def write_and_check(parts: Parts, folder: Path) -> tuple[dict[str, Any], LiteFrameConfig]:
    """Load, merge, save, reload in another process and compare: the parity report, and what the encoder is.

    Raises:
        ValueError: logits differ by more than verify.TOLERANCE, or prompts, frames or greedy answers differ; or merging
            in float32 changed more than rounding does.
    """
    model, processor = load_parts(parts)
    encoder = model.config.vision_config.encoder_config
    # A video that fills a part of one slot, and one that ends within its second clip.
    videos = verify.noise_videos([2, encoder.clip_frames + 3], encoder.image_size)
    frames = [video.numpy() for video in videos]
    dtype = model.get_input_embeddings().weight.dtype  # of the InternVL: what was trained may be wider
    adapted = isinstance(model, PeftModel)
    narrow = dtype != torch.float32
    # Greedy answers are compared after merging; where it rounds, they may be others before.
    expected = ask(model, processor, frames, QUESTIONS, 0 if adapted and narrow else NEW_TOKENS)
    if adapted:
        model = merge_adapter(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)  # not the buffers: rotary frequencies stay float32, as when loaded
    save_vlm(model, processor, folder)
    rounded = 0.0
    if adapted:
        # The sum of weight and update is rounded, and the file may hold fewer digits still: compare with what it holds.
        exact, expected = expected, ask(model, processor, frames, QUESTIONS, NEW_TOKENS)
        rounded = (exact["logits"] - expected["logits"]).abs().max().item()
        if not narrow:
            check_merge(exact, expected, rounded)
    del model  # the other process needs the memory
    reloaded = verify.reload(folder, "vlm", videos, questions=QUESTIONS, new_tokens=NEW_TOKENS)
    return compare(expected, reloaded, dtype, rounded), encoder


def save_vlm(model: Any, processor: Any, folder: Path) -> None:
    """Write weights, configs, tokenizer, processor and code."""
    family = family_of(model.config.model_type)
    save_weights(model, folder)
    processor.save_pretrained(folder)
    bundle([family.config_class.__module__], folder)
    copyfile(Path(__file__).with_name(MLX), folder / MLX)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "model_file": MLX})
    classes = {
        "AutoConfig": family.config_class,
        "AutoModel": family.model_class,
        "AutoModelForImageTextToText": family.generation_class,
        "AutoModelForMultimodalLM": family.generation_class,
    }
    add_auto_map(folder / "config.json", {auto: exported_name(cls) for auto, cls in classes.items()})
    add_auto_map(folder / "processor_config.json", {"AutoProcessor": exported_name(family.processor_class)})


def exported_name(cls: type) -> str:
    """Where a class is in the export, as transformers' `auto_map` says it."""
    return f"{Path(file_name(cls.__module__)).stem}.{cls.__name__}"


def check_merge(trained: dict[str, Tensor], merged: dict[str, Tensor], rounded: float) -> None:
    """Whether merging in float32 has changed no more than float32 rounds; a 16-bit file rounds too much to tell.

    Raises:
        ValueError: a logit has moved by more than 1e-4 of the largest, or a greedy answer is another.
    """
    largest = trained["logits"].abs().max().item()
    if not rounded <= verify.TOLERANCE * largest:
        raise ValueError(
            f"logits of the merged model differ by up to {rounded:.3g} from the trained one's (the largest is "
            f"{largest:.3g}), more than rounding does; nothing is written"
        )
    if not torch.equal(trained["answers"], merged["answers"]):
        raise ValueError("answers of the merged model differ from the trained one's; nothing is written")


def compare(
    expected: dict[str, Tensor], reloaded: verify.Reloaded, dtype: torch.dtype, rounded: float
) -> dict[str, Any]:
    """The parity report of a Video LLM.

    Raises:
        ValueError: something differs that should not.
    """
    found = reloaded.outputs
    for name in ("input_ids", "video_frames", "answers"):
        if not torch.equal(expected[name], found[name]):
            raise ValueError(f"{name} of the reloaded export differ from the trained model's; nothing is written")
    case = {
        "videos": expected["video_frames"].tolist(),
        "prompt_tokens": expected["attention_mask"].sum(1).tolist(),
        "greedy_tokens": expected["answers"].shape[1] - expected["input_ids"].shape[1],
        "greedy_answers_equal": True,
        "largest_logit": expected["logits"].abs().max().item(),
        "pixel_difference": verify.difference("pixels", expected["pixels"], found["pixels"]),
        "max_abs_difference": verify.difference("logits", expected["logits"], found["logits"]),
    }
    report = verify.report([case], reloaded)
    return {**report, "saved_dtype": str(dtype).removeprefix("torch."), "rounding_to_saved_dtype": rounded}
