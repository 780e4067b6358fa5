"""benchmarks/onnx_parity.py on a small encoder, and the table it has left."""

import json

from worlds import ROOT

from benchmarks import onnx_parity


def test_the_script_measures_and_the_committed_table_is_its_own(world, tmp_path):
    onnx_parity.main(["--encoder", str(world.encoder), "-o", str(tmp_path)])
    record = json.loads((tmp_path / "onnx_parity.json").read_text())
    assert set(record["reports"]) == {"float32", "float16"}
    assert record["reports"]["float32"]["max_relative_difference"] < 1e-5 < record["reports"]["float16"]["tolerance"]
    kept = json.loads((ROOT / "benchmarks/onnx_parity.json").read_text())
    assert (ROOT / "benchmarks/onnx_parity.md").read_text() == onnx_parity.as_markdown(kept)
    shapes = [case["video"] for case in kept["reports"]["float32"]["cases"]]
    assert len({tuple(shape[3:]) for shape in shapes}) == 3
    assert len({shape[1] for shape in shapes}) == 2
