"""Two processes train as one with the same global batch: under DDP and FSDP2, with bad videos, stopped and resumed."""

import json
import signal

import pytest
from safetensors.torch import load_file
from worlds.cache import contents
from worlds.forked import python
from worlds.processes import (
    MANY_RUNS,
    assert_same_training,
    curve,
    documented,
    finish,
    fork,
    free_port,
    report,
    start,
)

from liteframe.align.command import LMACommand
from liteframe.cli.main import main
from liteframe.distill.command import CTDCommand

MUON = ["--model.optimizer.kind", "muon", "--model.student.resize", "aspect"]  # and steps of one frame size each
SPLIT = ["--data.micro_batch_size", 4, "--data.context_parallel", 2]  # both have half of the tokens of every row
BROKEN = {"--data.batch_size": 2, "--trainer.max_steps": 4, "--trainer.val_check_interval": 2}


def words(*arguments, **options):
    return [str(word) for word in (*arguments, *(part for pair in options.items() for part in pair))]


@pytest.fixture(scope="module")
def one_rank_broken(videos):
    """Every clip of the second of two ranks is broken: for the statistics, in training and in validation."""
    return words(**{"--data.videos": videos / "one_rank", "--data.val_videos": videos / "one_rank_held_out", **BROKEN})


@pytest.fixture(scope="module")
def alone(config, chat, one_rank_broken, tmp_path_factory):
    """The runs in one process."""
    folder = tmp_path_factory.mktemp("alone")
    CTDCommand(["fit", *words("--config", config, "--run", folder / "ctd")])
    CTDCommand(["fit", *words("--config", config, "--run", folder / "muon"), *MUON])
    CTDCommand(["fit", *words("--config", config, "--run", folder / "broken"), *one_rank_broken])
    LMACommand(["fit", *words(*chat, "--run", folder / "lma", "--data.micro_batch_size", 4)])
    assert main(cache_build(config, folder)) == 0
    return folder


def cache_build(config, folder):
    return words("cache", "build", "--config", config, "-o", folder / "cache", "--views", 3)


@pytest.fixture(scope="module")
def together(config, chat, videos, one_rank_broken, tmp_path_factory):
    """The same runs, and some more, in two processes."""
    folder = tmp_path_factory.mktemp("together")

    def ctd(run, strategy, *more, **interference):
        arguments = words("--config", config, "--run", folder / run, "--trainer.strategy", strategy, *more)
        return {"program": "ctd", "arguments": arguments, **interference}

    plan = [
        ctd("sharded_then_whole", "fsdp2", *MUON, stop=[1, 1]),
        ctd("sharded_then_whole", "ddp", *MUON, "--resume"),
        ctd("whole_then_sharded", "ddp", stop=[1, 3]),
        ctd("whole_then_sharded", "fsdp2", "--resume"),
        ctd("broken_ddp", "ddp", *one_rank_broken),
        ctd("broken_fsdp2", "fsdp2", *one_rank_broken),
        {"program": "lma", "arguments": words(*chat, "--run", folder / "lma", "--data.micro_batch_size", 1)},
        ctd("too_many", "ddp", *one_rank_broken, "--data.max_failure_rate", 0.05),
        {"program": "liteframe", "arguments": cache_build(config, folder)},
        {"program": "lma", "arguments": words(*chat, "--run", folder / "split", *SPLIT)},
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    torchrun = documented("torchrun --standalone", {"8": 2}, config, folder)
    process = start(*torchrun[: torchrun.index("--") + 1], MANY_RUNS, folder / "plan.json")
    errors = finish(process)
    assert process.returncode == 0, errors
    codes = [[json.loads((folder / f"plan.{number}.{rank}.json").read_text()) for rank in range(2)]
             for number in range(len(plan))]  # fmt: skip
    return folder, codes, errors


def test_two_nodes_with_accumulation(alone, config, tmp_path):
    """The lines of the documentation, with a process on each node; micro-batches of one clip, two to a step."""
    changes = {"8": 1, "10.0.0.1": "127.0.0.1", "29500": free_port()}
    lines = [documented(f"torchrun --nnodes 2 --node_rank {rank}", changes, config, tmp_path / "run",
                        "--data.micro_batch_size", 1) for rank in range(2)]  # fmt: skip
    nodes = [fork(*line, PYTHON_EXEC=python()) for line in lines]
    errors = [finish(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert "step 6/6" in errors[0]
    assert "step 6/6" not in errors[1]
    assert_same_training(tmp_path / "run", alone / "ctd")
    ours, theirs = report(tmp_path / "run"), report(alone / "ctd")
    assert ours["data"] == theirs["data"]
    assert theirs["data"]["clips_failed"] >= 2
    names = {name for name in theirs["figures"] if not name.startswith("speed/")}
    assert {"val/token_cosine", "val/explained_variance_mean", "val/token_cosine_without_ema"} <= names
    for name in names:
        assert ours["figures"][name] == pytest.approx(theirs["figures"][name], rel=1e-3, abs=1e-4), name
    statistics = [load_file(run / "target_statistics.safetensors") for run in (tmp_path / "run", alone / "ctd")]
    for name, tensor in statistics[1].items():
        assert tensor.float().numpy() == pytest.approx(statistics[0][name].float().numpy(), rel=1e-5), name


@pytest.mark.parametrize(
    ("run", "first", "stopped", "expected"), [("sharded_then_whole", 0, 1, "muon"), ("whole_then_sharded", 2, 3, "ctd")]
)
def test_stopped_on_one_rank_and_resumed_under_the_other_strategy(together, alone, run, first, stopped, expected):
    """Both ranks leave together, and the weights of one strategy's checkpoint are the other's; by Muon and AdamW.

    The first sees frames in their own aspect ratio: of three sizes, which both ranks have in the same steps.
    """
    folder, codes, _ = together
    assert codes[first] == 2 * [128 + signal.SIGTERM]
    assert codes[first + 1] == [0, 0]
    assert_same_training(folder / run, alone / expected, stopped)
    ours, theirs = (load_file(path / "encoder" / "model.safetensors") for path in (folder / run, alone / expected))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-3 * max(1, tensor.abs().max()), name
    assert report(folder / run)["data"] == report(alone / expected)["data"]


@pytest.mark.parametrize(("run", "number"), [("broken_ddp", 4), ("broken_fsdp2", 5)])
def test_a_rank_without_a_readable_video_takes_part(together, alone, run, number):
    folder, codes, _ = together
    assert codes[number] == [0, 0]
    assert_same_training(folder / run, alone / "broken")
    assert report(folder / run)["data"] == report(alone / "broken")["data"]
    rows = [[json.loads(line)["path"] for line in (path / "bad_videos.jsonl").read_text().splitlines()]
            for path in (folder / run, alone / "broken")]  # fmt: skip
    assert sorted(rows[0]) == sorted(rows[1])
    assert len(rows[0]) == 5


def test_too_many_failures_on_one_rank_end_both(together):
    """The rank that read every clip of its own stops for the same reason, and can name the other's files."""
    messages = together[1][7]
    for message in messages:
        assert "max_failure_rate is 5%" in message
        assert "one_rank/clip" in message


@pytest.mark.parametrize(("run", "number"), [("lma", 6), ("split", 9)])
def test_lma(together, alone, run, number):
    """Each process has rows of its own, or its share of the tokens of all rows."""
    folder, codes, _ = together
    assert codes[number] == [0, 0]
    for name in ("train/loss", "train/gradient_norm", "train/answer_accuracy"):
        expected = curve(alone / "lma", name)
        assert curve(folder / run, name) == pytest.approx(expected, rel=1e-4)
        assert len(expected) == 3
    ours, theirs = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (folder / run, alone / "lma"))
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() < 1e-3, name
    shared, whole = report(folder / run)["data"], report(alone / "lma")["data"]
    padding = whole.pop("padding")
    assert shared.pop("padding") == {"lma": 0, "split": padding}[run]  # one row at a time, four at a time
    assert padding > 0
    assert shared == whole
    assert whole["clips_failed"] >= 1


def test_they_build_the_cache_that_one_builds(together, alone):
    folder, codes, errors = together
    assert codes[8] == [0, 0]
    assert "on 2 processes" in errors
    built = contents(folder / "cache")
    assert len([name for name in built if name.startswith("train")]) > 1
    assert built == contents(alone / "cache")


@pytest.mark.parametrize("command", [CTDCommand, LMACommand])
def test_other_strategies_are_refused(command, config, chat, tmp_path, capsys):
    arguments = words("--config", config) if command is CTDCommand else words(*chat)
    with pytest.raises(SystemExit):
        command(["fit", *arguments, "--run", str(tmp_path / "run"), "--trainer.strategy", "deepspeed"])
    assert "--trainer.strategy deepspeed is not supported; use ddp" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--trainer.strategy", "fsdp2"], "use ddp"),
        (["--data.context_parallel", 2], "data.context_parallel=2 does not divide the 1 processes of this run"),
    ],
)
def test_lma_is_not_divided(chat, tmp_path, capsys, more, reason):
    with pytest.raises(SystemExit):
        LMACommand(["fit", *words(*chat, "--run", tmp_path / "run", *more)])
    assert reason in capsys.readouterr().err
