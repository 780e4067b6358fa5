"""What an LMA run will take: a short warm-up on this machine, extrapolated to the whole run."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from torch import nn

from liteframe.align.command import LMACommand
from liteframe.align.conversation_files import describe_unread
from liteframe.align.lora import ENCODER
from liteframe.models.student.cost import cost
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.vlm.modes import video_tokens
from liteframe.training.plan import (
    WarmUp,
    checkpoint_bytes,
    measured_section,
    memory_section,
    steps_section,
    time_section,
    warm_up,
)


def plan_lma(command: type[LMACommand], arguments: list[str]) -> dict[str, Any]:
    """Warm up and extrapolate to the run, in sections by name.

    Args:
        command: LMACommand or PreferCommand.
        arguments: what follows its `fit`, with --run and --profile.
    """
    warm = warm_up(command, arguments)
    if (devices := warm.run.settings.data.context_parallel) > 1:
        raise ValueError(
            f"data.context_parallel={devices}: a plan is made by one process, which shares no tokens; plan with 1"
        )
    data, model = warm.run.data, warm.run.module
    base = model.model.get_base_model()
    encoder = next(m for m in base.model.get_submodule(ENCODER).modules() if isinstance(m, LiteFrameEncoder))
    weights = list(model.model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    frozen = [weight for weight in weights if not weight.requires_grad]
    steps = steps_section(warm, len(data.conversations))
    tokens = {frames: video_tokens(data.processor, frames) for frames in data.frames}
    vision, language = _flops(warm, encoder, base.model.language_model, tokens)
    measured = measured_section(warm)
    if data.cache_features:
        measured["remark"] = "the first epoch: data.cache_features makes the later ones faster"
    return {
        "data": {
            "conversations": len(data.conversations),
            "keys_that_are_not_read": describe_unread(data.unread),
            "frames_of_a_sample": ", ".join(map(str, data.frames)),
            "tokens_of_a_video": ", ".join(f"{count:,}" for count in tokens.values()),
            "frames_per_step": round(warm.batch_size * fmean(data.frames)),
            "tokens_per_step": round(warm.batch_size * fmean(tokens.values())),
            "remark": "for videos that last as long as the budgets of frames; shorter ones have fewer",
        },
        "model": {"trained_parameters": trained, "frozen_parameters": sum(weight.numel() for weight in frozen)},
        "steps": steps,
        "warm_up": measured,
        "flops_of_a_sample": {"encoder_flops": vision, "language_model_flops": language, "flops": vision + language},
        "memory_of_a_process": memory_section(
            warm, trained, sum(weight.numel() * weight.element_size() for weight in frozen), averaged=False
        ),
        "disk": {"checkpoints_bytes": checkpoint_bytes(warm, trained, averaged=False), "adapter_bytes": 4 * trained},
        "time": time_section(warm.seconds_per_step, steps["steps"], warm),
    }


def _flops(warm: WarmUp, encoder: LiteFrameEncoder, language: nn.Module, tokens: dict[int, int]) -> tuple[float, float]:
    """Mean over the budgets of frames, forward and backward, of the encoder and of the language model.

    The language model's weights are frozen: its backward pass computes gradients of activations only. Its output layer
    runs for the few answer tokens and is left out, as are the text around the video and the rank of the updates. A
    preference pair is two rows, which the reference reads, too.
    """
    again = warm.run.module.gradient_checkpointing + warm.run.data.pairs
    rows = 1 + warm.run.data.pairs
    height, width = warm.run.data.processor.frame_size
    prices = [cost(encoder.config, frames, (height, width)) for frames in tokens]
    passes = 3 + warm.run.module.gradient_checkpointing if warm.run.module.train_encoder else 1
    if warm.run.data.tokens is not None:
        passes = 0
    vision = fmean(price.flops + price.attention_flops for price in prices) * passes
    matrices = [module.weight.numel() for module in language.modules() if isinstance(module, nn.Linear)]
    config = warm.run.module.model.get_base_model().config.text_config
    linear = 2 * sum(matrices) * fmean(tokens.values()) * (2 + again)
    # QK and AV, each token attending to half of the others on average; both inputs of both products have gradients.
    square = fmean(count * count for count in tokens.values())
    attention = 2 * config.num_hidden_layers * config.hidden_size * square * (3 + again)
    return vision, rows * (linear + attention)
