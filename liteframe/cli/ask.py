"""Ask a Video LLM a question about a video and print the answer as it is found."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from liteframe.cli.eval import add_mode, add_reduction, add_sampling

if TYPE_CHECKING:
    from liteframe.answer.session import StreamSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe ask`."""
    parser.add_argument("video", help="video file")
    parser.add_argument("question", help="what to ask")
    parser.add_argument("--vlm", required=True, help="folder or id of an InternVL, or of an exported LiteFrame VLM")
    parser.add_argument("--encoder", help="folder of a LiteFrame encoder to put in place of the VLM's vision tower")
    parser.add_argument("--adapter", help="folder of a LoRA adapter (PEFT) to merge into the language model")
    add_mode(parser)
    add_reduction(parser)
    parser.add_argument("--frames", type=int, default=64, help="most frames, spread evenly (default 64)")
    parser.add_argument("--fps", type=float, help="frames a second, as many as --frames allows; default: any rate")
    add_sampling(parser)
    parser.add_argument("--start", type=float, help="start of the part to look at, in seconds")
    parser.add_argument("--end", type=float, help="end of the part to look at, in seconds")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer in tokens (default 512)")
    parser.add_argument("--memory", help="NAME:BUDGET of what forgets, budget in tokens, as window:4096; default: all")
    parser.add_argument("--system", help="system message; default: none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Print the answer as it is found; ValueError or VideoError when model, video or question are at fault."""
    from transformers.utils import logging

    from liteframe.answer.ask import VideoQuestion
    from liteframe.answer.memory import parse_memory
    from liteframe.answer.positions import OF_REDUCED
    from liteframe.answer.reduced_encoder import check_reduction, encoder_with
    from liteframe.data.video.sampling import rate_of
    from liteframe.models.vlm.load import find_device, load_video_llm
    from liteframe.models.vlm.modes import check_mode, find_mode

    if args.frames < 1 or args.max_new_tokens < 1 or (args.fps is not None and args.fps <= 0):
        raise ValueError("--frames and --max-new-tokens must be at least 1, --fps above 0")
    memory = parse_memory(args.memory) if args.memory else None
    check_reduction(args.reducer, args.ratio, bool(args.fit), args.positions, args.crops)
    check_mode(args.mode, args.encoder)
    device = find_device(args.device)
    asked = VideoQuestion.prepare(  # before the weights are loaded, which takes long
        args.video,
        args.question,
        frames=args.frames,
        fps=args.fps,
        start=args.start,
        end=args.end,
        system=args.system,
        sampling=args.sampling or "even",
    )
    logging.disable_progress_bar()
    mode = find_mode(
        args.mode, args.vlm, args.encoder,
        frames=len(asked.indices), words=len((args.question + (args.system or "")).encode()),
        answer=args.max_new_tokens,
    )  # fmt: skip
    parts = {"encoder": args.encoder, "adapter": args.adapter, "mode": mode, "memory": memory and memory.trained_for}
    model, processor = load_video_llm(args.vlm, **parts)
    model.to(device)
    encoder = encoder_with(model, processor, args.reducer, args.ratio, bool(args.fit), args.crops)
    positions = OF_REDUCED[args.positions or "packed"]

    def seen(session: StreamSession) -> None:
        rate = rate_of(asked.times)
        if rate is not None and session.tokens_per_frame is not None:
            per_second = f"{rate:.3g} a second, {rate * session.tokens_per_frame:.3g} tokens a second"
            print(f"liteframe ask: {session.frames} frames, {per_second}", file=sys.stderr, flush=True)

    how: dict[str, Any] = {
        "memory": memory,
        "encoder": encoder,
        "positions": positions,
        "labels": args.labels or "frames",
    }
    for piece in asked.answer(model, processor, max_new_tokens=args.max_new_tokens, seen=seen, **how):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
