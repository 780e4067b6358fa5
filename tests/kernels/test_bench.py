"""`liteframe bench` at a small size on the CPU: right first, then timed, and said not to be of a GPU."""

import json

import pytest
import torch

from liteframe.bench.comparison import Comparison, compare
from liteframe.bench.timing import Contender, rotation, time_side_by_side
from liteframe.cli.main import main

SMALL = ["--device", "cpu", "--tiny", "--frames", "8", "--size", "56", "--warmup", "0", "--runs", "2", "--no-compile"]
CPU = torch.device("cpu")


def test_bench_kernels(tmp_path):
    assert main(["bench", "kernels", "-o", str(tmp_path), *SMALL]) == 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert {row["kernel"] for row in record["rows"]} == {"temporal_conv", "strided_conv", "weighted_average_pool"}
    assert {row["direction"] for row in record["rows"]} == {"forward", "backward"}
    for row in record["rows"]:
        if row["implementation"] == "triton":
            assert row["status"] == "not measured on a GPU"
        else:
            assert row["status"] == "ok"
            assert row["error"] < 1.5e-2
            assert row["passes"] == pytest.approx(row["floor_passes"] / row["copy_share"])
    assert "not measured on a GPU" in (tmp_path / "kernels.md").read_text()
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_bench_encoder(tmp_path):
    assert main(["bench", "encoder", "-o", str(tmp_path), *SMALL]) == 0
    record = json.loads((tmp_path / "encoder.json").read_text())
    by_name = {(row["encoder"], row["variant"]): row for row in record["rows"]}
    assert by_name["student", "kernels"]["status"] == "not measured on a GPU"
    assert by_name["teacher", "eager"]["times_faster_than_teacher"] == 1
    assert by_name["student", "eager"]["matmul_share"] > 0
    assert {part["part"] for part in record["parts"]} >= {
        "attn",
        "mlp",
        "temporal",
        "downsample",
        "patch_embed",
        "head",
    }
    assert (tmp_path / "encoder.md").exists()
    assert (tmp_path / "encoder.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "6"], "multiple of 4"),
        (["--size", "60"], "one of 28"),
        (["--runs", "0"], "at least 1"),
        (["--device", "cuda"], "finds no CUDA device"),
    ],
)
def test_bad_sizes_are_explained(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "kernels", "-o", str(tmp_path), *SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_implementation_is_not_timed():
    comparison = Comparison(
        kernel="double",
        label="plain",
        shape=(8,),
        inputs=lambda: [torch.randn(8, requires_grad=True)],
        exact=lambda x: 2 * x,
        implementations={"right": lambda x: x + x, "wrong": lambda x: 2.1 * x, "broken": lambda x: x @ x[:2]},
        tensor_bytes=32,
        floor={"forward": 2, "backward": 2},
        flops={"forward": 8, "backward": 8},
    )
    rows = compare(comparison, CPU, copy_bytes_per_s=1e9, warmup=0, runs=1)
    status = {row["implementation"]: row["status"] for row in rows}
    assert status["right"] == "ok"
    assert status["wrong"] == "wrong"
    assert status["broken"].startswith("failed:")
    assert {row["implementation"] for row in rows if "median_ms" in row} == {"right"}


def test_contenders_take_turns_and_warm_up_is_not_counted():
    calls = []
    contenders = {
        name: Contender(lambda run, name=name: (name, run), lambda prepared: calls.append(prepared)) for name in "ab"
    }
    timings = time_side_by_side(contenders, CPU, warmup=1, runs=3)
    assert calls == [(name, run) for run in range(4) for name in "ab"]
    assert timings["a"].runs == 3
    assert timings["a"].p10_ms <= timings["a"].median_ms <= timings["a"].p90_ms
    assert rotation(1, CPU) == 2
