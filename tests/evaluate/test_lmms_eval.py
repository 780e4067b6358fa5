"""The real lmms-eval, driving LiteFrame through its entry point: replies and accuracy of `liteframe eval`."""

import json
import os
import subprocess
import sys

import pytest
from worlds.lettered import write_lettered_questions, write_lettered_vlm

from liteframe.cli.main import main

FRAMES = 4
TASK = """\
task: lettered
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.visual
doc_to_text: !function functions.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
process_results: !function functions.results
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""
FUNCTIONS = """\
import os

from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer


def visual(doc):
    return [os.path.join({folder!r}, doc["video"])]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def results(doc, replies):
    return {{"accuracy": float(extract_mcq_answer(replies[0], choices=list("ABCDEFGHIJKLMN")) == doc["answer"])}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("lmms")
    questions = write_lettered_questions(place / "world", videos=20)
    # The eleven questions about one video are put to a file that is none; both sides must count them as wrong.
    (place / "world" / "19.mp4").write_bytes(b"not a video")
    return write_lettered_vlm(place / "vlm"), questions


@pytest.fixture(scope="module")
def ours(world, tmp_path_factory):
    vlm, questions = world
    out = tmp_path_factory.mktemp("ours") / "run"
    command = ["eval", str(questions), "--vlm", str(vlm), "--frames", str(FRAMES), "--prompt", "{question}"]
    assert main([*command, "-o", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return {row["id"]: row for row in rows}, json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def theirs(world, tmp_path_factory):
    vlm, questions = world
    place = tmp_path_factory.mktemp("theirs")
    (place / "tasks").mkdir()
    (place / "tasks" / "lettered.yaml").write_text(TASK.format(questions=questions))
    (place / "tasks" / "functions.py").write_text(FUNCTIONS.format(folder=str(questions.parent)))
    command = [
        *(sys.executable, "-m", "lmms_eval", "--model", "liteframe", "--model_args"),
        *(f"pretrained={vlm},frames={FRAMES},device=cpu", "--tasks", "lettered"),
        *("--include_path", str(place / "tasks"), "--log_samples", "--output_path", str(place / "out")),
    ]
    environment = {**os.environ, "HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (samples,) = (place / "out").rglob("*_samples_lettered.jsonl")
    (results,) = (place / "out").rglob("*_results.json")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return rows, json.loads(results.read_text())["results"]["lettered"], done.stdout + done.stderr


def test_every_reply_is_the_same(world, ours, theirs):
    asked = [json.loads(line) for line in world[1].read_text().splitlines()]
    rows, _, _ = theirs
    assert len(asked) == len(rows) == len(ours[0]) == 220
    for row in rows:
        question = asked[row["doc_id"]]
        assert row["filtered_resps"] == (ours[0][question["id"]]["reply"] or ""), question


def test_accuracies_agree_and_are_no_accident(ours, theirs):
    scores = ours[1]
    assert theirs[1]["accuracy,none"] == pytest.approx(scores["accuracy"], abs=1e-9)
    assert scores["count"] == 220
    assert scores["of_read"]["count"] == 209
    assert scores["of_read"]["accuracy"] > 0.5  # one of fourteen letters by chance
    assert len({row["reply"] for row in ours[0].values()}) > 10


def test_an_unreadable_video_is_told_on_both_sides(ours, theirs):
    assert ours[1]["failed"] == {"questions": 11, "kinds": {"not_video": 11}}
    assert "counted as a wrong answer" in theirs[2]
