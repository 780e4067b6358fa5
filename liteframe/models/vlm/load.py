"""A Video LLM from disk ready for use, with or without a LiteFrame encoder and a LoRA adapter."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin

from liteframe.models.checkpoints import check_weight_index, checkpoint_source
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.io import read_config
from liteframe.models.vlm.adapter import check_trained_for, load_adapter, merge_adapter
from liteframe.models.vlm.attach import attach_encoder, narrow_config, processor_for, take_mode, with_encoder
from liteframe.models.vlm.chat import answer_ends
from liteframe.models.vlm.family import OURS, family_of
from liteframe.models.vlm.processor import LiteFrameProcessor
from liteframe.models.vlm.trained_memory import load_part


def load_video_llm(
    source: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | LiteFrameEncoder | None = None,
    adapter: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str = "auto",
    memory: str | None = None,
    mode: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a Video LLM in eval mode, on the CPU, with the processor that fits it.

    Args:
        source: a folder or Hugging Face id of a Video LLM of a known family (see family.py) in transformers' own
            format, or of one that already has a LiteFrame encoder; or "toyworld", the tiny InternVL that comes along.
        encoder: an encoder folder, or the encoder itself, to put in place of the vision tower.
        adapter: a PEFT adapter folder trained on exactly this combination; it is merged.
        dtype: of the weights; "auto" is what the checkpoint says. The encoder takes the dtype of the language model.
        memory: of a session, such as "summary", for an adapter that was trained for it; None for all others.
        mode: compression of an elastic encoder, which is left with it alone; None keeps all and encodes in its own.

    Returns:
        The model and its processor: with an encoder ours, else transformers' own classes.

    Raises:
        ValueError: source is of another family, lacks weights, already has an encoder, does not fit the encoder, the
            adapter has no safetensors weights or was trained for another memory, or the encoder has no such mode.
    """
    if mode is not None and encoder is None:
        raise ValueError(f"mode {mode!r} is one of an elastic encoder: name the encoder, too")
    if adapter is not None:
        check_trained_for(adapter, memory)
    elif memory is not None:
        raise ValueError(f"memory {memory!r} needs an adapter that was trained for it; give one (--adapter)")
    source = checkpoint_source(source)
    check_weight_index(source)
    # Left unsaid, transformers would ask on the terminal whether to run a checkpoint's code.
    kind = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    cls = model_class(source, kind)
    if kind.startswith(OURS) and encoder is not None:
        raise ValueError(f"{source} already has a LiteFrame encoder; give the Video LLM it was made from")
    model: Any
    try:
        model, info = cls.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged ({error}); copy or download them again") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{source} lacks {len(missing)} weights of its model (first: {missing[0]}), which would be random; "
            "copy or download it again"
        )
    processor = base = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    if encoder is not None:
        model = with_encoder(model, encoder)
        processor = processor_for(base, model.config)
        end_with_turn(model, processor.tokenizer)
    if adapter is not None:
        model = merge_adapter(load_adapter(model, adapter, memory))
        if memory is not None:
            load_part(model, processor, adapter, memory)
    if mode is not None:  # after the adapter, which knows the model with the whole encoder
        take_mode(model, mode)
        processor = processor_for(base, model.config)
    return model.eval(), processor


def end_with_turn(model: Any, tokenizer: Any) -> None:
    """Let `generate` end an answer where its turn ends, as training does; its other settings stay the checkpoint's."""
    settings, ends = copy.deepcopy(model.generation_config), answer_ends(model, tokenizer)
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    settings.pad_token_id = tokenizer.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
    settings._original_object_hash = hash(settings)  # else what the checkpoint's file says besides may not be saved
    model.generation_config = settings


def model_class(source: str | os.PathLike[str], model_type: str) -> Any:
    """The class of a checkpoint, which need not have an encoder of ours.

    Raises:
        ValueError: source is of another family.
    """
    try:
        family = family_of(model_type)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return family.generation_class if model_type.startswith(OURS) else family.hf_class


def load_processors(
    source: str | os.PathLike[str], encoder: str | os.PathLike[str]
) -> dict[str | None, LiteFrameProcessor]:
    """The processors that `load_video_llm(source, encoder=encoder, mode=)` gives, without reading any weights.

    Returns:
        By mode, from the finest to the coarsest; before them under None that of the encoder's own compression.

    Raises:
        ValueError: source is of another family or has an encoder already, or does not fit the encoder.
    """
    source = checkpoint_source(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    cls = model_class(source, config.model_type)
    if config.model_type.startswith(OURS):
        raise ValueError(f"{source} already has a LiteFrame encoder; give the Video LLM it was made from")
    shape = read_config(Path(encoder))
    with torch.device("meta"):
        vlm = cls(config)
        whole = attach_encoder(vlm, LiteFrameEncoder(shape)).config
    base = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    found: dict[str | None, LiteFrameProcessor] = {None: processor_for(base, whole)}
    for mode in shape.modes:
        config = copy.copy(whole)
        narrow_config(config, mode)
        found[mode] = processor_for(base, config)
    return found


def load_processor(source: str | os.PathLike[str], encoder: str | os.PathLike[str]) -> LiteFrameProcessor:
    """The processor that `load_video_llm(source, encoder=encoder)` gives; errors as of load_processors."""
    return load_processors(source, encoder)[None]


def find_device(name: str | None) -> torch.device:
    """The named device ("cpu", "cuda", "cuda:1", ...), or the first GPU where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    count = torch.cuda.device_count()
    if name is None:
        return torch.device("cuda" if count else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name} is no device; cpu, cuda, or cuda:1 for the second GPU") from error
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"only {count} CUDA device{'s' if count > 1 else ''}" if count else "no CUDA device"
        raise ValueError(f"--device {name}: PyTorch finds {found} here; use --device {'cuda:0' if count else 'cpu'}")
    return device
