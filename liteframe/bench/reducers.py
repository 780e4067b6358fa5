"""`liteframe bench reducers`: what signals and reduction of a video cost, at InternVL3-8B's shapes.

Shapes: F frames, (h,w) grid of patches, (h',w') of tokens, C channels of the tower, D of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from liteframe.bench.comparison import TOLERANCE
from liteframe.bench.report import heading, markdown
from liteframe.bench.systems import internvl3_8b_config
from liteframe.bench.timing import Contender, as_milliseconds, time_side_by_side
from liteframe.reduce import Reduced, Signals, reducers
from liteframe.reduce.signals import FrameTower, Seen

COLUMNS = ("reducer", "space", "goes by", "frames", "tokens/frame", "signals ms/frame", "reduction ms/frame", "differ")
SCENE = 8  # frames
MOST_THAT_DIFFER = 0.01


def measure_reducers(
    frames: int,
    ratio: float,
    device: torch.device,
    dtype: torch.dtype,
    *,
    warmup: int,
    runs: int,
    tiny: bool,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A row for each reducer, right and timed in turns with the others, or with the reason why not.

    Args:
        frames: F, of a made-up video of scenes of 8 frames, each a blurred picture with noise.
        ratio: tokens to keep.
        device: to run on.
        dtype: of tokens, queries and keys; reducers work in float32.
        warmup: calls that are not counted.
        runs: calls that are.
        tiny: 64 channels and 4x4 tokens, for tests.
        progress: told what is going on.
    """
    tower, seen, tokens = made_up(frames, device, dtype, tiny)
    rows, contenders = dict[str, dict[str, Any]](), dict[str, Contender]()
    for name, reducer in reducers.items():
        progress(f"{name}, {frames} frames: checked against float64")
        needs = tuple(sorted(reducer.needs))
        signals = tower.signals(seen, tokens[reducer.space], needs)
        budget = signals.budget(ratio)
        rows[name] = {"reducer": name, "space": reducer.space, "needs": needs, "frames": frames, "budget": budget}
        rows[name] |= check(partial(reducer, budget=budget), signals)
        if rows[name]["status"] == "ok":
            contenders[name] = _contender(partial(reducer, signals, budget))
            if needs:
                give = partial(tower.signals, seen, tokens[reducer.space], needs)
                contenders[" ".join((reducer.space, *needs))] = _contender(give)
            if reducer.space == "patch":
                rows[name]["tokens"] //= tokens["patch"].shape[1:3].numel() // tokens["shuffled"].shape[1:3].numel()
    progress(f"{frames} frames: {warmup + runs} turns")
    times = time_side_by_side(contenders, device, warmup=warmup, runs=runs)
    for name, row in rows.items():
        if row["status"] == "ok":
            of_signals = times.get(" ".join((row["space"], *row["needs"])))
            row["signals"] = None if of_signals is None else as_milliseconds(of_signals)
            row["reduction"] = as_milliseconds(times[name])
        yield row


def _contender(call: Callable[[], Any]) -> Contender:
    return Contender(lambda run: None, lambda _: call())


def check(reduce: Callable[[Signals], Reduced], signals: Signals) -> dict[str, Any]:
    """How many tokens come out, and how many of them not as in float64: up to 1 % may be due to rounding."""
    names = ("tokens", "saliency", "keys", "glob")
    wide = {name: x.double() for name in names if (x := getattr(signals, name)) is not None}
    try:
        found, truth = reduce(signals), reduce(replace(signals, **wide))
    except ValueError as error:
        return {"status": str(error)}
    count, differ = len(found.tokens), max(len(found.tokens), len(truth.tokens))
    if found.tokens.shape == truth.tokens.shape:
        scale = truth.tokens.square().mean(1).sqrt() + 1e-30
        apart = (found.tokens.double() - truth.tokens).square().mean(1).sqrt() / scale  # [M]
        alike = (apart <= TOLERANCE[signals.tokens.dtype]) & (found.place == truth.place) & (found.frame == truth.frame)
        differ = int((~alike).sum())
    return {"tokens": count, "differ": differ, "status": "ok" if differ <= MOST_THAT_DIFFER * count else "wrong"}


def made_up(
    frames: int, device: torch.device, dtype: torch.dtype, tiny: bool
) -> tuple[FrameTower, Seen, dict[str, Tensor]]:
    """A tower without weights, what it might have seen, and the video's tokens by space, [F,h',w',C'] each."""
    config = internvl3_8b_config()
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers = 1
    if tiny:
        config.vision_config.hidden_size, config.vision_config.image_size = 64, [112, 112]
        config.text_config.hidden_size = 64
    with torch.device("meta"):
        tower = FrameTower(InternVLForConditionalGeneration._from_config(config))
    vision = config.vision_config
    side, channels = vision.image_size[0] // vision.patch_size[0], vision.hidden_size
    generator = torch.Generator(device).manual_seed(0)
    noise = partial(torch.randn, generator=generator, device=device, dtype=torch.float32)

    def scenes(width: int, depth: int) -> Tensor:
        count = -(-frames // SCENE)
        blurred = noise(count, 4, 4, depth).repeat_interleave(width // 4, 1).repeat_interleave(width // 4, 2)
        still = blurred + 0.3 * noise(count, width, width, depth)
        return (still.repeat_interleave(SCENE, 0)[:frames] + 0.4 * noise(frames, width, width, depth)).to(dtype)

    patches = scenes(side, channels)
    keys = torch.cat([noise(frames, 1, channels).to(dtype), scenes(side, channels).flatten(1, 2)], dim=1)
    seen = Seen(patches, noise(frames, channels).to(dtype), noise(frames, 1, channels).to(dtype), keys)
    projected = scenes(side // 2, config.text_config.hidden_size)
    return tower, seen, {"patch": patches, "shuffled": tower.tokens(seen, "shuffled"), "projected": projected}


def reducer_table(record: dict[str, Any]) -> str:
    """Markdown of a record of `liteframe bench reducers`."""
    rows = []
    for row in record["rows"]:
        head = [row["reducer"], row["space"], ", ".join(row["needs"]), str(row["frames"])]
        if row["status"] != "ok":
            rows.append([*head, row["status"], "", "", ""])
            continue
        signals = "0" if row["signals"] is None else _per_frame(row["signals"], row["frames"])
        tokens = f"{row['tokens'] / row['frames']:.2f}"
        rows.append([*head, tokens, signals, _per_frame(row["reduction"], row["frames"]), str(row["differ"])])
    setup = record["setup"]
    notes = (
        f"A made-up video of the shapes of {'a tiny model' if setup['tiny'] else 'InternVL3-8B'}, {setup['dtype']}, "
        f"ratio {setup['ratio']:g}, {setup['threads']} threads; {setup['warmup']} warm-ups, median of {setup['runs']} "
        "(10th to 90th percentile), the reducers in turns.\n"
        "Signals are made of queries and keys of the tower's last block, which it has computed anyway; keeping them\n"
        "is not counted. `differ` counts tokens that are not those of a run in float64; above 1 % a reducer is not\n"
        "timed. Tokens of the patch space are counted as the language model gets them.\n\n"
    )
    return heading(record, "Reducers") + notes + markdown(COLUMNS, rows)


def _per_frame(timing: dict[str, float], frames: int) -> str:
    median, low, high = (timing[name] / frames for name in ("median_ms", "p10_ms", "p90_ms"))
    return f"{median:.3f} ({low:.3f} - {high:.3f})"
