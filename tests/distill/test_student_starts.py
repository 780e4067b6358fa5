"""benchmarks/student_starts.py, a tiny run of it; and a run of CTD from another ViT than the teacher."""

import json

import pytest
from liteframe_export.card import teacher_section
from worlds import ROOT

from liteframe import LiteFrameEncoder, load_teacher
from liteframe.distill import student_init


def test_tiny_run_compares_the_starts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from small_students import Setup as Clips
    from student_starts import STARTS, Setup, main

    clips = Clips(clips=4, held_out=2, batch=2)
    main(tmp_path, Setup(dim=32, steps=2, seeds=(0, 1), vit_steps=2, vit_batch=2, vit_scenes=2, clips=clips))
    record = json.loads((tmp_path / "student_starts.json").read_text())
    assert len(record["runs"]) == 2 * len(STARTS)
    assert set(record["cosine"]) == set(STARTS)
    for start in STARTS:
        found = [run["cosine"]["end"] for run in record["runs"] if run["start"] == start]
        assert len(set(found)) == 2
        assert abs(record["cosine"][start]["mean"] - sum(found) / 2) < 1e-9


@pytest.fixture
def timm_vit(monkeypatch):
    """A ViT that timm has no weights of here, as large as the student or smaller."""
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "img_size": 64, "patch_size": 8}
    vit = load_teacher("timm/vit_tiny_patch16_224", pretrained=False, **sizes)
    vit.license = "cc-by-nc-4.0"
    monkeypatch.setattr(student_init, "load_teacher", lambda name: vit)
    return vit


def test_init_from_a_vit_of_timm(timm_vit, fit, tmp_path, capsys):
    fit("--run", tmp_path / "run", "--init_from", "timm/vit_tiny_patch16_224", "--trainer.max_steps", 1,
        "--model.optimizer.lr", 1e-9)  # fmt: skip
    said = capsys.readouterr().err
    assert "--init_from timm/vit_tiny_patch16_224: its first 2 blocks; random: head" in said
    assert "license of timm/vit_tiny_patch16_224: cc-by-nc-4.0: no commercial use" in said
    start = json.loads((tmp_path / "run" / "report.json").read_text())["init_from"]
    assert start == {"name": "timm/vit_tiny_patch16_224", "sha256": timm_vit.identity, "license": "cc-by-nc-4.0"}
    card = teacher_section({"init_from": start})
    assert (
        "That of the weights that the student started from (cc-by-nc-4.0) applies as well. Its terms: no comm" in card
    )
    student = LiteFrameEncoder.from_pretrained(tmp_path / "run" / "encoder").state_dict()
    theirs = timm_vit.tower.model.state_dict()
    for name in ("attn.qkv.weight", "mlp.fc1.weight", "norm2.bias"):
        assert (student[f"blocks.1.{name}"] - theirs[f"blocks.1.{name}"]).abs().max() < 1e-6, name
    with pytest.raises(ValueError, match=r"--init_from timm/\S+: .*smaller ViT: depth \(student 4, ViT 3\)"):
        fit("--run", tmp_path / "deep", "--init_from", "timm/vit_tiny_patch16_224", "--model.student.depth", 4)


def test_the_page_says_what_the_record_says():
    cosine = json.loads((ROOT / "benchmarks" / "student_starts.json").read_text())["cosine"]
    page = (ROOT / "docs" / "teachers.md").read_text(encoding="utf-8")
    for start in ("teacher", "other ViT", "random"):
        assert f"{cosine[start]['mean']:.3f} ± {cosine[start]['std']:.3f}" in page
