"""`--mode` of ask, eval and compare: what the extracted encoder says, recorded, and one mode or several in a table."""

import json

import pytest
from worlds import ROOT
from worlds.lettered import write_lettered_questions
from worlds.students import make_student, student_config

from liteframe.cli.main import main
from liteframe.models.student.elastic import standard_modes

TOY = str(ROOT / "liteframe/toyworld/checkpoint")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A video with two questions, an elastic encoder, and its coarsest mode as an ordinary one."""
    folder = tmp_path_factory.mktemp("elastic")
    file = write_lettered_questions(folder / "world", 1)
    few = file.read_text().splitlines(keepends=True)[:2]
    (folder / "world" / "questions.jsonl").write_text("".join(few))
    elastic = make_student(student_config(modes=standard_modes({1: (2, 2, 2), 2: (2, 1, 1)})))
    elastic.save_pretrained(folder / "encoder")
    elastic.extract("32x").save_pretrained(folder / "32x")
    return folder


def evaluate(world, out, *more):
    words = ["eval", str(world / "world" / "questions.jsonl"), "--vlm", TOY, "--frames", "8", "--prompt", "{question}"]
    return main([*words, "-o", str(out), *more])


def replies(out):
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return [(row["id"], row["reply"], row["tokens"]) for row in rows]


def test_eval_in_a_mode_is_that_of_the_extracted_encoder(world, tmp_path, capsys):
    elastic = ["--encoder", str(world / "encoder")]
    assert evaluate(world, tmp_path / "mode", *elastic, "--mode", "32x") == 0
    assert evaluate(world, tmp_path / "extracted", "--encoder", str(world / "32x")) == 0
    assert replies(tmp_path / "mode") == replies(tmp_path / "extracted")
    assert json.loads((tmp_path / "mode" / "scores.json").read_text())["settings"]["model"]["mode"] == "32x"
    # 8 frames of 32x are a slot of 4 tokens in 7 of text: a budget that no finer mode keeps to finds it, too.
    assert evaluate(world, tmp_path / "mode", *elastic, "--mode", "auto:11") == 0
    assert "already have a reply" in capsys.readouterr().out
    assert evaluate(world, tmp_path / "mode", *elastic, "--mode", "8x") == 2
    assert "mode" in capsys.readouterr().err
    assert evaluate(world, tmp_path / "no", *elastic, "--mode", "9x") == 2
    assert "mode '9x' is unknown: this encoder has 4x, 8x" in capsys.readouterr().err


def test_ask_in_a_mode(world, capsys):
    video, said = str(next((world / "world").rglob("*.mp4"))), []
    for encoder, mode in (("encoder", ["--mode", "32x"]), ("32x", []), ("encoder", ["--mode", "auto:11"])):
        words = ["ask", video, "What color?", "--vlm", TOY, "--encoder", str(world / encoder), "--frames", "8"]
        assert main([*words, "--max-new-tokens", "4", *mode]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2]
    assert main([*words, "--mode", "8x", "--encoder", str(world / "32x")]) == 2
    assert "one compression" in capsys.readouterr().err


def test_a_comparison_of_modes(world, tmp_path):
    """A row a mode and number of frames; `auto` takes a coarser one where there are more frames."""
    words = ["compare", str(world / "world" / "questions.jsonl"), "--vlm", TOY, "--encoder", str(world / "encoder")]
    words += ["--systems", "liteframe", "--mode", "4x,32x,auto:50", "--frames", "8,16", "--timing-runs", "1"]
    assert main([*words, "--run", str(tmp_path / "run"), "--prompt", "{question}"]) == 0
    points = json.loads((tmp_path / "run" / "compare.json").read_text())["points"]
    tokens = {(point["system"], point["frames"]): point["tokens"] for point in points}
    assert {key: tokens[key] for key in tokens if key[0].startswith("liteframe")} == {
        ("liteframe@4x", 8): 32, ("liteframe@4x", 16): 64, ("liteframe@32x", 8): 4, ("liteframe@32x", 16): 8,
        ("liteframe@auto:50", 8): 16, ("liteframe@auto:50", 16): 16,  # 8x, then 16x
    }  # fmt: skip
    assert all(point["times_ms"] and not point["failed"] for point in points)
    page = (tmp_path / "run" / "results.md").read_text()
    assert "liteframe 32x" in page
    assert "Mode auto:50: 8x at 8 frames, 16x at 16 frames." in page
