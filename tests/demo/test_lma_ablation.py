"""benchmarks/lma_ablation.py: the committed table is that of the committed record; means and spreads by hand."""

import json

import pytest
from worlds import ROOT

from benchmarks import lma_ablation
from liteframe.align.command import LMACommand


def test_the_committed_table_comes_from_the_committed_record():
    record = json.loads((ROOT / "benchmarks/lma_ablation.json").read_text())
    assert (ROOT / "benchmarks/lma_ablation.md").read_text() == lma_ablation.as_markdown(record)
    assert set(record["scores"]) == {variant.name for variant in lma_ablation.VARIANTS}
    assert all(len(runs) >= 3 for runs in record["scores"].values())


def test_means_and_spreads():
    def run(accuracy):
        return {"accuracy": accuracy, "types": {kind: {"accuracy": accuracy / 2} for kind in lma_ablation.TYPES}}

    settings = {"videos": 1, "test_videos": 2, "ctd_steps": 3, "lma_steps": 4, "seeds": [0, 1, 2]}
    machine = {"device": "cpu", "torch": "2", "python": "3", "date": "today"}
    scores = {"CTD": [run(0.5), run(0.6), run(0.7)]}
    table = lma_ablation.as_markdown({"machine": machine, "frames": 64, "settings": settings, "scores": scores})
    assert "| CTD | 60.0 ± 10.0 | 30 | 30 | 30 | 30 | 30 |" in table
    assert "10 questions about 2 held-out videos" in table


@pytest.mark.parametrize("variant", lma_ablation.VARIANTS[1:], ids=lambda variant: variant.name)
def test_variants_are_options_of_training(variant, monkeypatch, tmp_path):
    seen = {}

    def stop(self):
        seen["model"] = self.config.fit.model
        raise SystemExit(0)

    monkeypatch.setattr(LMACommand, "instantiate_classes", stop)
    with pytest.raises(SystemExit):
        LMACommand(
            ["fit", f"--config={ROOT / 'configs/lma/toy.yaml'}", f"--run={tmp_path / 'run'}", *variant.arguments()]
        )
    assert seen["model"].lora.rank == variant.rank
    assert seen["model"].lora.alpha == 2 * variant.rank
    assert seen["model"].train_projector == variant.train_projector
