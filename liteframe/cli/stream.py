"""Watch a stream and answer questions about it while it runs."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from liteframe.answer.follow import StreamAnswer

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `liteframe stream`."""
    parser.add_argument(
        "source",
        help="a video file; a folder that pictures are written into; a camera or network stream that PyAV opens, "
        "such as /dev/video0 or rtsp://...; - for a video on standard input",
    )
    parser.add_argument("--vlm", required=True, help="folder or id of an InternVL, or of an exported LiteFrame VLM")
    parser.add_argument("--encoder", help="folder of a LiteFrame encoder to put in place of the VLM's vision tower")
    parser.add_argument("--adapter", help="folder of a LoRA adapter (PEFT) to merge into the language model")
    parser.add_argument("--memory", default="window:4096", help="NAME:BUDGET in tokens (default window:4096), or all")
    parser.add_argument("--fps", type=float, default=1.0, help="frames a second that are looked at (default 1)")
    parser.add_argument("--labels", default="frames", help="before each slot: frames (default), seconds or none")
    parser.add_argument(
        "--compact", action="store_true", help="number what a KV memory keeps anew at the end of the model's range"
    )
    parser.add_argument("--questions", help='JSONL of {"time": seconds, "question": text}; others are typed')
    parser.add_argument("-o", "--out", help="JSONL file that answers are added to")
    parser.add_argument("--state", help="file that the session is saved to when the stream ends or Ctrl-C stops it")
    parser.add_argument("--resume", action="store_true", help="go on with --state; files are skipped up to there")
    parser.add_argument(
        "--stall", type=float, default=10.0, help="seconds without a frame that are too many (default 10)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer in tokens (default 64)")
    parser.add_argument("--system", help="system message; default: none")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda where there is one, else cpu")


def run(args: argparse.Namespace) -> int:
    """Answer as questions come; 130 after Ctrl-C or SIGTERM; ValueError if model, source or questions are at fault."""
    from transformers.utils import logging

    from liteframe.answer.follow import follow, read_questions
    from liteframe.answer.memory import parse_memory
    from liteframe.answer.positions import Compact, Keep
    from liteframe.answer.session import StreamSession
    from liteframe.answer.sources import Source, check_source
    from liteframe.models.vlm.load import find_device, load_video_llm

    if args.fps <= 0 or args.stall <= 0 or args.max_new_tokens < 1:
        raise ValueError("--fps and --stall must be above 0, --max-new-tokens at least 1")
    memory, state = parse_memory(args.memory), Path(args.state) if args.state else None
    questions = read_questions(Path(args.questions)) if args.questions else []
    check_source(args.source)
    if args.resume and state is None:
        raise ValueError("--resume goes on with what --state names; give both")
    if state is not None and state.exists() != args.resume:
        raise ValueError(f"--state {state} " + ("is not there" if args.resume else "is there already; add --resume"))
    device = find_device(args.device)
    logging.disable_progress_bar()
    parts = {"encoder": args.encoder, "adapter": args.adapter, "memory": memory.trained_for}
    model, processor = load_video_llm(args.vlm, **parts)
    session = StreamSession(
        model.to(device),
        processor,
        memory,
        fps=args.fps,
        system=args.system,
        labels=args.labels,
        positions=Compact() if args.compact else Keep(),
    )
    if args.resume and state is not None:
        session.load(state)
    begin = session.last_time
    source = Source(args.source, fps=args.fps, start=begin, stall=args.stall, notify=_say)
    left = [question for question in questions if begin is None or (question.time or 0.0) >= begin]
    typed = Typed(interactive=args.source != "-" and sys.stdin.isatty())
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for answer in follow(session, source, left, typed, max_new_tokens=args.max_new_tokens):
            _show(answer, session.memory.name, args.out)
    except KeyboardInterrupt:
        _say("stopped" + (f"; go on with --state {state} --resume" if state else "; nothing is saved without --state"))
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
        if state is not None:
            session.save(state)
    size = session.size()
    rate = "" if session.tokens_per_frame is None else f", {args.fps * session.tokens_per_frame:.3g} tokens a second"
    _say(f"the stream has ended after {session.frames} frames{rate}; {session.memory.name} holds {size.tokens} tokens")
    return 0


class Typed:
    """Questions typed at a terminal, read in a thread; a call gives those since the last one."""

    def __init__(self, interactive: bool) -> None:
        self._lines: SimpleQueue[str] = SimpleQueue()
        if interactive:
            Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)

    def __call__(self) -> Iterator[str]:
        """What is no question for the model is told and left out."""
        from liteframe.answer.generate import check_text

        while True:
            try:
                line = self._lines.get_nowait().strip()
            except Empty:
                return
            try:
                check_text(line)
            except ValueError as error:
                _say(str(error))
                continue
            if line:
                yield line


def _show(answer: StreamAnswer, memory: str, out: str | None) -> None:
    asked = "now" if answer.time is None else f"{answer.time:.1f} s"
    until = "no frame yet" if answer.seen_until is None else f"{answer.frames} frames until {answer.seen_until:.1f} s"
    held = f"{memory} holds {answer.tokens} tokens, {answer.bytes / 2**20:.1f} MiB"
    print(
        f"[{asked}] {answer.question}\n{answer.text}\n    {until}; {held}; first word after {answer.first_word:.2f} s"
    )
    sys.stdout.flush()
    if out:
        row: dict[str, Any] = asdict(answer)
        with Path(out).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _say(text: str) -> None:
    print(f"liteframe stream: {text}", file=sys.stderr, flush=True)
