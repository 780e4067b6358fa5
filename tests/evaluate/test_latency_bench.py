"""`liteframe bench latency` on the tiny model: what is measured, how long its prompts are, the paper's ratios."""

import json

import pytest
import torch
from worlds import ROOT
from worlds.students import student_config
from worlds.vlms import make_llava_onevision

from liteframe.bench import latency as latency_bench
from liteframe.bench.latency import BASELINE, PAPER, add_ratios
from liteframe.bench.report import latency_table
from liteframe.bench.stages import Latency
from liteframe.bench.systems import LITEFRAME, POOLED, TEACHER, build_systems, load_pair, make_inputs
from liteframe.cli.main import main
from liteframe.models.student.encoder import LiteFrameEncoder

TOY = str(ROOT / "liteframe/toyworld/checkpoint")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("latency") / "encoder"
    LiteFrameEncoder(student_config(dim=32)).save_pretrained(folder)
    return str(folder)


def test_report(encoder, tmp_path):
    options = ["--device", "cpu", "--dtype", "float32", "--warmup", "0", "--runs", "2"]
    argv = ["bench", "latency", "--vlm", TOY, "--encoder", encoder, "--frames", "8", "32", "4096", "--batch", "1", "2"]
    assert main([*argv, *options, "-o", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "latency.json").read_text())
    rows = {(r["system"], r["frames"], r["batch"]): r for r in record["rows"]}
    assert set(rows) == {(s, f, b) for s in (TEACHER, POOLED, LITEFRAME) for f in (8, 32, 4096) for b in (1, 2)}
    assert {r["tokens_per_frame"] for r in record["rows"]} == {16, 1}
    teacher, pooled, student = (rows[s, 32, 1] for s in (TEACHER, POOLED, LITEFRAME))
    assert teacher["vision_parameters"] == pooled["vision_parameters"] > student["vision_parameters"]
    assert teacher["of_teacher_32"] == 1.0
    assert student["paper_of_teacher_32"] == pytest.approx(0.113, abs=5e-4)
    assert "paper_ms" not in rows[LITEFRAME, 32, 2]
    assert "more than the" in rows[TEACHER, 4096, 1]["status"]
    assert not record["setup"]["random_weights"]
    assert [row["frames"] for row in record["first_token"]] == [8, 32]
    table = (tmp_path / "latency.md").read_text()
    assert "not measured on a GPU" in table
    assert (tmp_path / "latency.png").stat().st_size > 10_000


def bench(encoder, out, *more):
    options = ["--device", "cpu", "--dtype", "float32", "--warmup", "0", "--runs", "1", "-o", str(out)]
    return main(["bench", "latency", "--vlm", TOY, "--encoder", encoder, *options, *more])


def test_what_was_measured_before_an_interruption_is_kept(encoder, tmp_path, monkeypatch):
    def interrupted(systems, **protocol):
        if any(len(inputs["input_ids"][0]) > 400 for _, inputs in systems.values()):  # 32 frames of the teacher
            raise KeyboardInterrupt
        return measure_in_turns(systems, **protocol)

    measure_in_turns = latency_bench.measure_in_turns
    monkeypatch.setattr(latency_bench, "measure_in_turns", interrupted)
    assert bench(encoder, tmp_path, "--frames", "8", "32") == 130
    rows = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert [(row["frames"], row["status"]) for row in rows] == [(8, "ok")] * 3
    assert "| teacher VLM | 8 |" in (tmp_path / "latency.md").read_text()


def test_systems_that_fit_only_one_by_one_are_measured_one_by_one(encoder, tmp_path, monkeypatch):
    def small(systems, **protocol):
        if len(systems) > 1 or (protocol["runs"] == 2 and TEACHER in systems):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure_in_turns(systems, **protocol)

    measure_in_turns = latency_bench.measure_in_turns
    monkeypatch.setattr(latency_bench, "measure_in_turns", small)
    assert bench(encoder, tmp_path, "--frames", "8", "--runs", "2") == 0
    rows = {row["system"]: row for row in json.loads((tmp_path / "latency.json").read_text())["rows"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        TEACHER: "out of memory", POOLED: "ok, but not in turns", LITEFRAME: "ok, but not in turns",
    }  # fmt: skip
    assert {name for name, row in rows.items() if "total_ms" in row} == {POOLED, LITEFRAME}


def test_peak_memory_is_that_of_a_system_alone(encoder):
    systems = build_systems(*load_pair(TOY, encoder, torch.device("cpu"), torch.float32))
    held = {name: latency_bench.held_bytes(name, model) for name, (model, _) in systems.items()}
    weights = {name: sum(size.values()) for name, size in held.items()}
    tower = sum(p.nbytes for p in systems[TEACHER][0].model.vision_tower.parameters())
    student = sum(p.nbytes for p in LiteFrameEncoder.from_pretrained(encoder).parameters())
    assert weights[POOLED] == weights[TEACHER]
    assert weights[TEACHER] - weights[LITEFRAME] == pytest.approx(tower - student, abs=4096)  # but for buffers
    measured = Latency(1.0, 1.0, 1.0, 1.0, peak_mib=100.0, total_p90_ms=1.0)
    inputs = {name: {"ids": torch.zeros(2**18)} for name in systems}  # a MiB each
    given = {name: (model, inputs[name]) for name, (model, _) in systems.items()}
    found = latency_bench.alone_peaks(dict.fromkeys(systems, measured), given, held)
    assert found[TEACHER].peak_mib == pytest.approx(100 - 2 - student / 2**20, abs=0.01)
    assert found[LITEFRAME].peak_mib == pytest.approx(100 - 2 - tower / 2**20, abs=0.01)


def test_the_three_give_the_tokens_that_their_prompts_have_room_for(encoder):
    """The models themselves refuse a prompt whose image tokens are not as many as their features."""
    device, batch = torch.device("cpu"), 2
    systems = build_systems(*load_pair(TOY, encoder, device, torch.float32))
    lengths = {}
    for name, (model, config) in systems.items():
        inputs = make_inputs(model, config, 10, batch)
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=1).logits
        assert logits.shape[:2] == (batch, 1)
        lengths[name] = int((inputs["input_ids"] == model.config.image_token_id).sum()) // batch
    assert lengths == {TEACHER: 160, POOLED: 12, LITEFRAME: 12}
    assert systems[TEACHER][0].lm_head is systems[LITEFRAME][0].lm_head


def test_paper_s_own_percentages():
    """The notes' main table: 64 frames -28.0 %, 128 -32.5 %, 256 -34.6 % against 8, 16, 32 frames of the teacher."""
    for frames, change in ((64, -28.0), (128, -32.5), (256, -34.6)):
        ratio = PAPER[LITEFRAME, frames][2] / PAPER[TEACHER, frames // 8][2]
        assert 100 * (ratio - 1) == pytest.approx(change, abs=0.06)
    rows = [{"system": TEACHER, "frames": 32, "batch": 1, "total_ms": 500.0}]
    rows += [{"system": LITEFRAME, "frames": 256, "batch": 1, "total_ms": 250.0}]
    add_ratios(rows)
    assert (BASELINE, rows[1]["of_teacher_32"]) == ((TEACHER, 32), 0.5)
    assert rows[1]["paper_of_teacher_32"] == pytest.approx(1 - 0.3465, abs=5e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vlm", TOY], "go together"),
        ([], "need a GPU"),
        (["--vlm", TOY, "--encoder", TOY, "--batch", "0"], "at least 1"),
    ],
)
def test_refusals(options, message, capsys):
    assert main(["bench", "latency", "--device", "cpu", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_vlm_of_the_other_family_is_named(encoder, tmp_path):
    llava = make_llava_onevision(tmp_path / "llava")
    with pytest.raises(ValueError, match="is a llava_onevision; name an InternVL"):
        load_pair(llava, encoder, torch.device("cpu"), torch.float32)


def test_the_committed_table_comes_from_the_committed_record():
    record = json.loads((ROOT / "benchmarks/latency.json").read_text())
    assert (ROOT / "benchmarks/latency.md").read_text() == latency_table(record)
    assert {row["frames"] for row in record["rows"]} == {8, 16, 32, 64, 128, 256}
