"""Does a run survive a folder of bad files, and does its memory stay flat? Writes bad_files.json, .md and .png.

    python benchmarks/bad_files.py [--files 1000] [--epochs 10] [--workers 2] [-o benchmarks/bad_files]

Trains a very small student from a very small teacher with random weights, so that nearly all time goes into reading.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib
import torch
from broken_videos import make_videos
from process_memory import ROLES, MemorySamples
from transformers import InternVLVisionConfig, InternVLVisionModel

from liteframe.distill.command import CTDCommand
from liteframe.files import write_atomically, write_json
from liteframe.training.report import environment

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BROKEN, BATCH = 0.05, 16
SAMPLES_PER_EPOCH = 8
# What a process may grow by over the second half of the epochs and still count as flat.
FLAT_MIB = 5.0
CONFIG = """
seed_everything: 0
run: overridden
model:
  teacher: {{name: "{teacher}"}}
  student: {{dim: 16, depth: 2, heads: 2, mlp_dim: 32, patch_size: 8, image_size: 64, teacher_dim: 32,
            downsample: {{1: [2, 2, 2], 2: [2, 1, 1]}}, clip_frames: 8}}
  target: {{statistics_clips: 16}}
  optimizer: {{lr: 1.0e-3, warmup_steps: 10}}
data: {{videos: "{manifest}", val_fraction: 0, batch_size: {batch}, workers: {workers}, min_fps: 4,
       max_failure_rate: {bound}}}
trainer: {{max_epochs: {epochs}, max_steps: -1, accelerator: cpu}}
"""


def make_teacher(folder: Path) -> Path:
    """A vision transformer of 2 blocks of 32 channels with random weights."""
    torch.manual_seed(0)
    config = InternVLVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=[64, 64],
        patch_size=[8, 8], attention_bias=True, use_mean_pooling=True,
    )  # fmt: skip
    InternVLVisionModel(config).save_pretrained(folder)
    statistics_of_pixels = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics_of_pixels))
    return folder


def train(folder: Path, *, files: int, epochs: int, workers: int, part: float = BROKEN) -> dict[str, Any]:
    """Make the files, `part` of them broken, and train on them; returns the record."""
    manifest, broken = make_videos(folder, files, part)
    config = folder / "bad_files.yaml"
    teacher = make_teacher(folder / "teacher")
    config.write_text(
        CONFIG.format(teacher=teacher, manifest=manifest, batch=BATCH, workers=workers, bound=1.6 * part, epochs=epochs)
    )
    steps = -(-files // BATCH)
    samples = MemorySamples(max(1, steps // SAMPLES_PER_EPOCH))

    class Command(CTDCommand):
        def run_callbacks(self) -> list[Any]:
            return [samples, *super().run_callbacks()]

    begin = time.perf_counter()
    Command(["fit", "--config", str(config), "--run", str(folder / "run")])
    seconds = time.perf_counter() - begin
    report = json.loads((folder / "run" / "report.json").read_text())
    lines = (folder / "run" / "bad_videos.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    kinds = {way: Counter() for way in broken.values()}
    for row in listed:
        kinds[broken[row["path"]]][row["kind"]] += 1
    return {
        "files": files, "broken": len(broken), "epochs": epochs, "workers": workers, "steps_per_epoch": steps,
        "steps": report["steps"], "seconds": round(seconds, 1), "data": report["data"] | {"videos": manifest.name},
        "listed": len({row["path"] for row in listed}),
        "not_listed": sorted(set(broken) - {row["path"] for row in listed}),
        "max_failure_rate": 1.6 * part,
        "ways": {way: {"files": Counter(broken.values())[way], "kinds": dict(found)} for way, found in kinds.items()},
        "memory": [summary(samples.rows, role, steps, epochs) for role in ROLES],
        "samples": samples.rows,
        "environment": {**environment(torch.device("cpu")), "command": "python benchmarks/bad_files.py"},
    }  # fmt: skip


def summary(rows: list[dict[str, Any]], role: str, steps: int, epochs: int) -> dict[str, Any]:
    """Mean memory of a role's processes in each epoch, in MiB, and its growth over the second half of the run."""
    mine = [row for row in rows if row["role"] == role]
    by_epoch = [[row for row in mine if (row["step"] - 1) // steps == epoch] for epoch in range(epochs)]
    means = {
        figure: [round(statistics.mean(row[figure] for row in epoch), 1) for epoch in by_epoch]
        for figure in ("uss", "rss")
    }
    growth = round(means["uss"][-1] - means["uss"][epochs // 2], 1)
    return {
        "role": role, "processes": len({row["pid"] for row in mine}), **means, "growth": growth,
        "flat": growth <= FLAT_MIB,
    }  # fmt: skip


def draw(record: dict[str, Any], path: Path) -> None:
    """Unshared memory of every process over the epochs."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours = dict(zip(ROLES, ("#444444", "#1f77b4", "#d62728"), strict=True))
    for role in ROLES:
        for number, pid in enumerate(sorted({row["pid"] for row in record["samples"] if row["role"] == role})):
            points = [row for row in record["samples"] if row["pid"] == pid and row["role"] == role]
            epochs = [row["step"] / record["steps_per_epoch"] for row in points]
            axes.plot(epochs, [row["uss"] for row in points], color=colours[role], label=None if number else role)
    axes.set(xlabel="epoch", ylabel="memory of one process that no other shares (MiB)", ylim=(0, None))
    axes.set_title(f"{record['files']} files, {record['broken']} of them broken in {len(record['ways'])} ways")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def tell(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    data, bound = record["data"], record["max_failure_rate"]
    columns = "".join(f" {epoch} |" for epoch in range(1, record["epochs"] + 1))
    lines = [
        "# Bad files",
        "",
        f"{record['files']} videos of 64x64 pixels, {record['broken']} of them broken in {len(record['ways'])} ways; "
        f"{record['epochs']} epochs with {record['workers']} workers, data.max_failure_rate {bound:.0%}. "
        f"{record['steps']} steps in {record['seconds']:.0f} s; {data['clips_read']:,} clips read, "
        f"{data['clips_failed']:,} failed; {record['listed']} of {record['broken']} broken files are listed in "
        "bad_videos.jsonl, and no other.",
        "",
        "| broken how | files | listed as |",
        "| --- | --- | --- |",
        *(
            f"| {way} | {row['files']} | {', '.join(f'{kind} ({n})' for kind, n in row['kinds'].items())} |"
            for way, row in record["ways"].items()
        ),
        "",
        f"Memory of one process in MiB, mean over an epoch: USS is what it shares with no other, RSS all. Flat: USS "
        f"grows by at most {FLAT_MIB:g} MiB over the second half of the epochs. Over the first half a process touches "
        "pages that it inherited, each worker probes each file once, and malloc keeps free memory for later.",
        "",
        f"| role | processes | figure |{columns} growth | flat |",
        f"| --- | --- | --- |{' --- |' * record['epochs']} --- | --- |",
        *(
            f"| {row['role']} | {row['processes']} | {figure.upper()} |{''.join(f' {mean} |' for mean in row[figure])} "
            + (f"{row['growth']} | {'yes' if row['flat'] else 'NO'} |" if figure == "uss" else "| |")
            for row in record["memory"]
            for figure in ("uss", "rss")
        ),
        "",
        "![memory over the epochs](bad_files.png)",
        "",
        "Made by `python benchmarks/bad_files.py`.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/bad_files"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = train(Path(folder), files=arguments.files, epochs=arguments.epochs, workers=arguments.workers)
    write_json(arguments.output.with_suffix(".json"), record)
    draw(record, arguments.output.with_suffix(".png"))
    write_atomically(arguments.output.with_suffix(".md"), tell(record).encode())
    print(tell(record))


if __name__ == "__main__":
    main()
