"""`liteframe bench` at a small size on the CPU: right first, then timed, and said not to be of a GPU."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from liteframe.bench.comparison import Comparison, compare
from liteframe.bench.report import heading
from liteframe.bench.timing import Contender, copy_bandwidth, machine, matmul_rate, rotation, time_side_by_side
from liteframe.cli.main import main

SMALL = ["--device", "cpu", "--tiny", "--frames", "8", "--size", "56", "--warmup", "0", "--runs", "2", "--no-compile"]
CPU = torch.device("cpu")


def test_bench_kernels(tmp_path):
    assert main(["bench", "kernels", "-o", str(tmp_path), *SMALL]) == 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    kernels = {"temporal_conv", "residual_norm", "strided_conv", "weighted_average_pool"}
    assert {row["kernel"] for row in record["rows"]} == kernels
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
    for row in record["rows"]:
        if row["status"] == "ok":
            assert row["matmul_share"] == row["flop_per_s"] / record["matmul_flop_per_s"] <= 1
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


def test_another_card_than_the_current_one_is_timed(monkeypatch):
    """Each card's stream has a clock of its own; an event that names no stream is put on the current card's, cuda:0."""
    clocks, waited = {0: 0.0, 1: 0.0}, []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream=0):
            self.at = clocks[stream]

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: torch.device(device or "cuda:0").index)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))

    def work(prepared):
        clocks[0] += 1
        clocks[1] += 7

    card = torch.device("cuda:1")
    timing = time_side_by_side({"": Contender(lambda run: run, work)}, card, warmup=1, runs=3)[""]
    assert (timing.median_ms, timing.p10_ms, timing.p90_ms) == (7, 7, 7)
    assert waited == [card]


SMI = """#!/bin/sh
case "$*" in
  *--id=0000000a:3b:00.0*) echo "550.1, 1980 MHz, 700.00 W";;
  *--id=*) echo "another card" >&2; exit 6;;
  *) echo "550.1, 210 MHz, 300.00 W"; echo "550.1, 1980 MHz, 700.00 W";;
esac
"""


def test_the_heading_names_the_measured_card_alone(monkeypatch, tmp_path):
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    place = SimpleNamespace(pci_domain_id=10, pci_bus_id=0x3B, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: place)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some Card")
    record = {"machine": machine(torch.device("cuda:1"))}
    assert record["machine"]["driver"] == "550.1, 1980 MHz, 700.00 W"
    title, nothing, line, *rest = heading(record, "Kernels").splitlines()
    assert (title, nothing, rest) == ("# Kernels", "", [""])
    assert line.startswith("Some Card, driver 550.1, 1980 MHz, 700.00 W, torch ")


def test_rates_are_measured_warm_in_the_dtype_of_the_run(monkeypatch):
    """The first calls of each kind take a thousand times as long as the later ones, as oneDNN's do."""
    calls = {}

    def slow_at_first(a, b):
        assert a.dtype == b.dtype == torch.bfloat16
        calls[a.shape] = calls.get(a.shape, 0) + 1
        time.sleep(0.05 if calls[a.shape] <= 5 else 0.00005)

    monkeypatch.setattr("liteframe.bench.timing.F.linear", slow_at_first)
    rate = matmul_rate(CPU, torch.bfloat16, warmup=0, runs=1)
    assert rate > 2 * 2048**3 / 0.01
    copy_, copies = torch.Tensor.copy_, []

    def slow_copy(self, other):
        copies.append(self)
        time.sleep(0.05 if len(copies) <= 5 else 0)
        return copy_(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", slow_copy)
    assert copy_bandwidth(CPU, 4096, warmup=0, runs=1) > 2 * 4096 / 0.01


def test_an_encoder_faster_than_a_matmul_is_an_error_of_the_measurement(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("liteframe.bench.encoder.matmul_rate", lambda *args, **protocol: 1e6)
    assert main(["bench", "encoder", "-o", str(tmp_path), *SMALL]) == 2
    assert "which cannot be; nothing is written. Something else used the machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
