"""How many of the tokens that the language model reads are padding: counted, reported, and small in groups."""

import json

import numpy as np
import pytest

from liteframe.align.command import LMACommand
from liteframe.align.dataset import ConversationDataset
from liteframe.align.module import LMAModule
from liteframe.data.video.timeline import Timeline
from liteframe.training.command import load_run

MIXED = ("--data.micro_batch_size", "2", "--data.batch_size", "4", "--data.frames", "[2,8]", "--data.fps", "[2,8]")


def by_hand(data, steps):
    """Tokens and padding of whole steps, from the samples themselves."""
    dataset, lengths = data.dataset(), []
    stream = data.stream(dataset, data.micro_batch_size, 2 * steps)
    for number in range(2 * steps):
        lengths.append([len(dataset[key].input_ids) for key in stream.batch(number)])
    read = sum(map(sum, lengths))
    return read, sum(max(batch) * len(batch) for batch in lengths) - read


@pytest.mark.parametrize("grouped", ["true", "false"])
def test_a_run_reports_its_padding_and_goes_on_counting(run, lma_world, tmp_path, monkeypatch, grouped):
    words = ("--config", lma_world / "lma.yaml", *MIXED, "--data.group_by_length", grouped, "--run", tmp_path / "run")
    data = load_run(LMACommand, list(map(str, words))).data
    logged, log = [], LMAModule.log

    def noted(self, name, value, **kwargs):
        if name == "train/padding":
            logged.append(float(value))
        log(self, name, value, **kwargs)

    monkeypatch.setattr(LMAModule, "log", noted)
    for steps in (1, 3):
        run("fit", *words, "--trainer.max_steps", steps, "--model.optimizer.final_lr_ratio", "0.5",
            *(("--resume",) if steps > 1 else ()))  # fmt: skip
    found = json.loads((tmp_path / "run" / "report.json").read_text())["data"]
    read, padding = by_hand(data, 3)
    assert padding > 0
    assert found["tokens"] == read
    assert found["padding"] == pytest.approx(padding / (read + padding))
    assert len(logged) == 3
    first = by_hand(data, 1)
    assert logged[0] == pytest.approx(first[1] / sum(first))


class Everything:
    """All features are there; no video is decoded."""

    def __contains__(self, key):
        return True


def test_groups_of_mixed_lengths_are_below_five_percent(lma_world, tmp_path):
    """128 rows a step, in sixteen turns; lengths are guessed from what the rows tell, and counted from the samples."""
    facts = {
        "video": str(lma_world / "0.mp4"),
        "fps": 8.0,
        "frames": 10,
        "width": 64,
        "height": 64,
        "breaks": [list(b) for b in Timeline.constant_rate(10, 8.0).breaks],
    }
    words = np.random.default_rng(0).integers(1, 40, 256)
    turns = ([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red " * count}] for count in words)
    spans = ({"start": 0.0, "end": 1.25 / (1 + number % 5)} for number in range(256))
    rows = [{**facts, **span, "conversations": said} for span, said in zip(spans, turns, strict=True)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = {}
    for grouped in ("true", "false"):
        settings = ["--data.conversations", path, "--data.frames", "[4,8]", "--data.batch_size", "128"]
        settings += ["--data.micro_batch_size", "8", "--data.group_by_length", grouped]
        data = load_run(LMACommand, list(map(str, ["--config", lma_world / "lma.yaml", *settings]))).data
        dataset = ConversationDataset(
            data.conversations, data.processor, budgets=[4, 8], fps=(8.0, 8.0), cached=Everything()
        )
        stream = data.stream(dataset, 8, 32)
        batches = [[len(dataset[key].input_ids) for key in stream.batch(number)] for number in range(32)]
        assert sorted(index for number in range(32) for _, index in stream.batch(number)) == list(range(256))
        shares[grouped] = 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)
    assert shares["true"] < 0.05 < shares["false"]
