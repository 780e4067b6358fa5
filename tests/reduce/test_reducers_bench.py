"""`liteframe bench reducers` at a small size on the CPU: right first, then timed, or the reason why not."""

import json

import pytest
import torch

from liteframe import reducers
from liteframe.bench.reducers import check
from liteframe.cli.main import main
from liteframe.reduce import Reduced, Signals

OPTIONS = ["--device", "cpu", "--dtype", "float32", "--tiny", "--warmup", "0", "--runs", "2", "--frames", "8"]


def test_report(tmp_path):
    assert main(["bench", "reducers", *OPTIONS, "--ratio", "0.125", "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "reducers.json").read_text())
    rows = {row["reducer"]: row for row in record["rows"]}
    assert list(rows) == list(reducers)
    for name, row in rows.items():
        if name == "dycoke":
            assert row["status"] == "DyCoke leaves 2 frames whole, 32 tokens, more than the budget of 16"
            continue
        assert row["status"] == "ok"
        assert row["reduction"]["runs"] == 2
        assert (row["signals"] is None) == (not reducers[name].needs)
        assert row["differ"] == 0
    assert rows["vcast"]["tokens"] == 16
    table = (tmp_path / "reducers.md").read_text()
    assert "| dycoke | projected |  | 8 | DyCoke leaves 2 frames whole" in table
    assert "| tome | shuffled |  | 8 | 2.00 | 0 | " in table
    assert "not measured on a GPU" in table


@pytest.mark.parametrize("ratio", ["0", "1.5"])
def test_a_ratio_out_of_range_is_named(ratio, tmp_path, capsys):
    assert main(["bench", "reducers", *OPTIONS, "--ratio", ratio, "-o", str(tmp_path)]) != 0
    assert "--ratio is above 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_rounding_decides_is_wrong():
    signals = Signals(torch.randn(4, 16, 8), (4, 4))

    def chosen_by_precision(given):
        keep = torch.zeros(4, 16, dtype=torch.bool)
        keep[:, 3 if given.tokens.dtype == torch.float32 else 5] = True
        return Reduced.kept(given, keep)

    assert check(chosen_by_precision, signals) == {"tokens": 4, "differ": 4, "status": "wrong"}
    assert check(lambda given: reducers["evs"](given, 16), signals)["differ"] == 0
