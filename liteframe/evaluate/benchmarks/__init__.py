"""Benchmarks by their names on the command line."""

from pathlib import Path

from liteframe.evaluate.benchmarks.base import Benchmark
from liteframe.evaluate.benchmarks.hlvid import HLVid
from liteframe.evaluate.benchmarks.longvideobench import LongVideoBench
from liteframe.evaluate.benchmarks.mlvu import MLVU
from liteframe.evaluate.benchmarks.ovbench import OVBench
from liteframe.evaluate.benchmarks.ovo_bench import OvoBench
from liteframe.evaluate.benchmarks.own_questions import FreeForm, MultipleChoice, has_options
from liteframe.evaluate.benchmarks.streaming_bench import StreamingBench, StreamingBenchAll, StreamingBenchProactive
from liteframe.evaluate.benchmarks.video_mme import VideoMME

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *(VideoMME(), MLVU(), LongVideoBench(), HLVid()),
        *(OvoBench(), StreamingBench(), StreamingBenchAll(), StreamingBenchProactive(), OVBench()),
        *(MultipleChoice(), FreeForm()),
    )
}


def find_benchmark(name: str, source: str | None) -> tuple[Benchmark, Path]:
    """A benchmark and where it lies, from `NAME FOLDER`, or from a JSONL file of questions alone.

    Raises:
        ValueError: an unknown name, or no folder for a known one.
    """
    if name in BENCHMARKS:
        if source is None:
            raise ValueError(f"{name} needs its folder: {BENCHMARKS[name].layout}")
        return BENCHMARKS[name], Path(source)
    if source is not None or not name.endswith(".jsonl"):
        raise ValueError(f"{name} is neither a benchmark ({', '.join(BENCHMARKS)}) nor a .jsonl file of questions")
    return BENCHMARKS[MultipleChoice.name if has_options(Path(name)) else FreeForm.name], Path(name)
