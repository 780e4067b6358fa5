"""Show one conversation as the language model will read it, and which part of it is learned."""

from __future__ import annotations

import argparse
import re
from typing import Any

RUN = 8  # image tokens in a row that are shown as one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe preview`."""
    parser.add_argument("conversations", help="as train_lma.py takes it: .jsonl, .json, InternVL meta, LLaVA mixture")
    parser.add_argument("--vlm", required=True, help="folder or id of the Video LLM that will be aligned")
    parser.add_argument("--encoder", required=True, help="folder of the LiteFrame encoder that it gets")
    parser.add_argument("--row", type=int, default=0, help="number of the conversation, from 0 (default 0)")
    parser.add_argument("--frames", type=int, default=32, help="most frames of the sample (default 32)")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second, as --frames allows (default 1)")


def run(args: argparse.Namespace) -> int:
    """Print the sample: learned text in green between marks, the rest dim."""
    from rich.console import Console
    from rich.text import Text
    from transformers.utils import logging

    from liteframe.align.conversation_files import load_conversations
    from liteframe.align.dataset import ConversationDataset
    from liteframe.data.video.errors import VideoError
    from liteframe.models.vlm.chat import IGNORE
    from liteframe.models.vlm.load import load_processor

    logging.disable_progress_bar()
    conversations = load_conversations(args.conversations)
    if not 0 <= args.row < len(conversations):
        raise ValueError(
            f"--row {args.row}: there are {len(conversations)} conversations, 0 to {len(conversations) - 1}"
        )
    if args.frames < 1 or args.fps <= 0:
        raise ValueError(f"--frames {args.frames} must be at least 1 and --fps {args.fps} above 0")
    processor: Any = load_processor(args.vlm, args.encoder)
    dataset = ConversationDataset(conversations, processor, budgets=[args.frames], fps=(args.fps, args.fps))
    sample = dataset[(0, args.row)]
    if isinstance(sample, VideoError):
        raise sample
    # Lines are those of the conversation, and brackets in it are its own.
    console = Console(highlight=False, soft_wrap=True, markup=False)
    shown = Text()
    for text, learned in pieces(sample.input_ids, sample.labels, processor):
        shown.append(f"[LEARN]{text}[/LEARN]" if learned else text, style="bold green" if learned else "dim")
    console.print(shown)
    learned_tokens = sum(label != IGNORE for label in sample.labels)
    image_tokens = sum(token == processor.image_token_id for token in sample.input_ids)
    console.print(
        f"\nconversation {args.row} of {len(conversations)}: {len(sample.input_ids)} tokens, {image_tokens} of them of "
        f"{len(sample.media)} videos and images, {learned_tokens} learned"
    )
    for medium in sample.media:
        path, frames = medium.key
        console.print(
            f"  {path}: frames {list(frames[:4])}{'...' if len(frames) > 4 else ''}" if frames else f"  {path}"
        )
    return 0


def pieces(ids: list[int], labels: list[int], processor: Any) -> list[tuple[str, bool]]:
    """The tokens as text, cut where learning starts and ends, with long runs of image tokens shortened.

    Raises:
        ValueError: a label is not the token it stands on.
    """
    from liteframe.models.vlm.chat import IGNORE

    cut: list[tuple[list[int], bool]] = []
    for token, label in zip(ids, labels, strict=True):
        if label not in (IGNORE, token):
            raise ValueError(f"label {label} stands on token {token}")
        learned = label != IGNORE
        if not cut or cut[-1][1] != learned:
            cut.append(([], learned))
        cut[-1][0].append(token)
    return [(_shortened(processor.tokenizer.decode(tokens), processor.image_token), learned) for tokens, learned in cut]


def _shortened(text: str, image: str) -> str:
    run = re.compile(f"(?:{re.escape(image)}){{{RUN},}}")
    return run.sub(lambda found: f"{image}*{len(found.group()) // len(image)}", text)
