"""Answer a file of questions about videos and report accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe eval`."""
    parser.add_argument("questions", help="JSONL of video (relative to the file), question, answer, optional type")
    parser.add_argument("--vlm", required=True, help="folder or id of an InternVL, or of an exported LiteFrame VLM")
    parser.add_argument("--encoder", help="folder of a LiteFrame encoder to put in place of the VLM's vision tower")
    parser.add_argument("--adapter", help="folder of a LoRA adapter (PEFT) to merge into the language model")
    parser.add_argument("--frames", type=int, default=32, help="frames of each video, spread evenly (default 32)")
    parser.add_argument("--max-new-tokens", type=int, default=16, help="longest answer in tokens (default 16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one, else cpu")
    parser.add_argument("-o", "--out", type=Path, help="write answers (JSONL) here and the scores beside them")


def run(args: argparse.Namespace) -> int:
    """Answer, score, print, and write where asked."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from liteframe.data.manifest import write_jsonl
    from liteframe.evaluate.scoring import is_right, score
    from liteframe.evaluate.videoqa import answer_rows, load_questions
    from liteframe.load_vlm import load_video_llm
    from liteframe.training.run_folder import write_json

    if args.frames < 1:
        raise ValueError(f"--frames {args.frames}: at least one frame is needed")
    rows = load_questions(args.questions)
    model, processor = load_video_llm(args.vlm, encoder=args.encoder, adapter=args.adapter)
    model.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with Progress() as bar:
        task = bar.add_task("questions", total=len(rows))
        answers = answer_rows(
            model,
            processor,
            rows,
            frames=args.frames,
            max_new_tokens=args.max_new_tokens,
            progress=lambda n: bar.update(task, advance=n),
        )
    result = score(rows, answers)
    console = Console()
    console.print(f"{100 * result['accuracy']:.1f} ± {100 * result['error']:.1f} % of {result['count']} questions")
    for kind, part in result["types"].items():
        console.print(f"  {kind}: {100 * part['accuracy']:.1f} ± {100 * part['error']:.1f} % of {part['count']}")
    if args.out:
        pairs = zip(rows, answers, strict=True)
        write_jsonl([{**row, "reply": r, "right": is_right(r, row["answer"])} for row, r in pairs], args.out)
        settings = {"questions": args.questions, "vlm": args.vlm, "encoder": args.encoder, "adapter": args.adapter}
        write_json(args.out.with_suffix(".scores.json"), {**result, **settings, "frames": args.frames})
    return 0
