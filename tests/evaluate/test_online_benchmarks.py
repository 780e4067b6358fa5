"""OVO-Bench, StreamingBench and OVBench: what is read from their layouts, how it is scored, what mistakes are named."""

import json
import math
import re

import pytest
from worlds import benchmarks as samples
from worlds.ctd import write_video

from liteframe.evaluate.benchmarks import BENCHMARKS
from liteframe.evaluate.benchmarks.base import Result, StreamQuestion
from liteframe.evaluate.benchmarks.ovo_bench import CATEGORIES, strict
from liteframe.evaluate.folder import score_report

OVO = BENCHMARKS["ovo-bench"]
ITEM = {
    "id": 7, "task": "EPM", "video": "v.mp4", "realtime": 2.2, "question": "Which?", "answer": "RED",
    "options": ["blue", "red"], "gt": 1,
}  # fmt: skip
REC = {"id": 8, "task": "REC", "video": "v.mp4", "activity": "jump", "test_info": [{"realtime": 1, "count": 2}]}
SSR = {"id": 9, "task": "SSR", "video": "v.mp4", "test_info": [{"realtime": 1, "step": "knead", "type": 1}]}


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=24, fps=8)


def load(folder, *items):
    samples.write_rows(folder / "ovo_bench_new.json", list(items))
    return OVO.load(folder).questions


def words(benchmark, question):
    return benchmark.words({**benchmark.prompts, "": benchmark.prompt}, question)


def test_ovo_bench_is_asked_at_the_second_rounded_up(tmp_path, video):
    samples.place(video, tmp_path / "src_videos/v.mp4")
    choice, count, step = load(tmp_path, ITEM, REC, SSR)
    assert (choice.id, choice.end, choice.answer, choice.kind) == ("7", 3.0, "B", "letter")  # `gt` counts
    assert (count.id, count.answer, count.kind, step.answer, step.kind) == ("8_0", "2", "count", "Yes", "yesno")
    assert choice.groups == {"task": "EPM", "category": "backward"}
    lines = words(OVO, choice).split("\n")
    assert lines[:5] == ["", "Question: Which?", "Options:", "A. blue; B. red;", ""]
    assert lines[-1] == ""
    assert "\nHow many times did they jump?\n" in words(OVO, count)
    assert "\nknead\n" in words(OVO, step)


def test_chunks_that_the_authors_cut_take_a_missing_videos_place(tmp_path, video):
    samples.place(video, tmp_path / "data/chunked_videos/7.mp4", tmp_path / "data/chunked_videos/8_0.mp4")
    choice, count, step = load(tmp_path, ITEM, REC, SSR)
    assert (choice.video, choice.end) == (str(tmp_path / "data/chunked_videos/7.mp4"), None)
    assert count.video.endswith("8_0.mp4")
    assert step.video == str(tmp_path / "src_videos/v.mp4")  # where it should be
    assert step.end == 1.0


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({**ITEM, "task": "XYZ"}, "record 1: the task 'XYZ' is unknown; OVO-Bench has EPM, ASI"),
        ({**ITEM, "gt": 2}, "record 1: 'gt' must be the number of an option, 0 to 1, got 2"),
        ({**ITEM, "gt": "B"}, "'gt' must be the number of an option, 0 to 1, got 'B'"),
        ({**ITEM, "options": ["one"]}, "'options' must be a list of 2 to 5 texts"),
        ({**ITEM, "realtime": -1}, "'realtime' must be seconds, 0 or more, got -1"),
        ({**ITEM, "realtime": math.nan}, "'realtime' must be seconds"),
        ({**ITEM, "video": "../v.mp4"}, "leads out of"),
        ({**REC, "test_info": []}, "'test_info' of a REC item must be a list of queries"),
        (
            {**REC, "test_info": [{"realtime": 1, "count": "2"}]},
            "query 0 of 'test_info': 'count' must be a whole number",
        ),
        ({**SSR, "test_info": [{"realtime": 1, "step": "x", "type": 2}]}, "'type' must be 1 (Yes) or 0 (No), got 2"),
        ({"task": "EPM"}, "lacks 'id'"),
        ([ITEM], "not an object with named fields"),
    ],
)
def test_wrong_items_are_named(tmp_path, item, told):
    with pytest.raises(ValueError, match=rf"ovo_bench_new\.json.*{re.escape(told)}"):
        load(tmp_path, item)


def test_another_layout_is_named(tmp_path):
    for benchmark in ("ovo-bench", "streamingbench", "streamingbench-proactive", "ovbench"):
        with pytest.raises(ValueError, match=r"expected .*(json|videos)"):
            BENCHMARKS[benchmark].load(tmp_path)
    samples.write_rows(tmp_path / "ovo_bench_new.json", {"annotations": []})
    with pytest.raises(ValueError, match="not a list of records"):
        OVO.load(tmp_path)
    samples.write_rows(tmp_path / "questions_sqa.json", [{"video_path": "a.mp4", "questions": [{}]}])
    with pytest.raises(ValueError, match="expected a list of the records of one video, got a dict"):
        BENCHMARKS["streamingbench"].load(tmp_path)


def ovo(task, right, item=""):
    """A question of which a reply of its right answer is right; another is wrong."""
    category = next(name for name, tasks in CATEGORIES.items() if task in tasks)
    kind = {"REC": "count", "SSR": "yesno", "CRR": "yesno"}.get(task, "letter")
    answer, wrong = {"count": ("12", "1"), "yesno": ("No", "Yes"), "letter": ("B", "A")}[kind]
    groups = {"task": task, "category": category}
    given = {"id": "", "video": f"{task}{item}", "text": "", "letters": "AB", "task": task, "item": item}
    return Result(StreamQuestion(answer=answer, kind=kind, groups=groups, **given), answer if right else wrong)


def test_means_of_ovo_bench():
    letters = {
        "EPM": [1, 0],
        "ASI": [1],
        "HLD": [0],
        "OCR": [1, 1],
        "ACR": [0],
        "ATR": [1],
        "STU": [1, 0],
        "FPD": [0],
        "OJR": [1],
    }
    results = [ovo(task, right) for task, rights in letters.items() for right in rights]
    results += [ovo("REC", right, "a") for right in (1, 0, 0, 0)] + [ovo("REC", 1, "b")]
    results += [ovo("SSR", right, "c") for right in (1, 1)] + [ovo("CRR", right, "d") for right in (0, 1)]
    found = {name: round(100 * metric.share.accuracy, 2) for name, metric in OVO.metrics(results, 0).items()}
    expected = {
        "backward": 50, "real-time": 58.33, "forward": 63.33, "total": 57.22, "mean of tasks": 57.5,
        "backward + real-time": 54.17, "REC by item": 62.5, "SSR by item": 100, "CRR by item": 50,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    assert {name: found[f"{name}, strict"] for name in expected} == expected  # replies that both read alike
    rec = [result for result in results if result.question.groups["task"] == "REC"]
    assert OVO.metrics(rec, 0)["forward"].share.accuracy == pytest.approx(0.4)
    assert "total" not in OVO.metrics(rec, 0)  # of one category there is none
    missing = [Result(result.question, None) for result in results]
    assert OVO.metrics(missing, 0)["total"].share.accuracy == 0


@pytest.mark.parametrize(
    ("kind", "answer", "reply", "loose", "tight"),
    [
        ("letter", "B", "B", True, True),
        ("letter", "B", "The answer is (B)", True, True),
        ("letter", "B", "A or B", True, False),
        ("letter", "A", "Because", False, False),
        ("letter", "B", "", False, False),
        ("count", "12", "1 or 2", True, False),
        ("count", "12", "12 times.", True, True),
        ("count", "3", "three", False, False),
        ("yesno", "No", "Not yet", True, False),
        ("yesno", "No", "N", True, True),
        ("yesno", "Yes", "I cannot say No or Yes", True, False),
        ("yesno", "Yes", "yes.", False, True),
        ("yesno", "No", "Yes", False, False),
    ],
)
def test_replies_are_read_as_the_authors_do_and_strictly(kind, answer, reply, loose, tight):
    question = StreamQuestion(id="", video="", text="", answer=answer, kind=kind, letters="ABCD")
    assert OVO.reply_is_right(question, reply) == loose
    assert strict(question, reply) == tight


def test_replies_that_never_look(tmp_path):
    """HLD's right option is always the one that cannot be answered: whoever says so reaches 100 %."""
    hld = [{**ITEM, "id": n, "task": "HLD", "options": ["a", "b", "Unable to answer"], "gt": 2} for n in range(3)]
    hld[0]["options"], hld[0]["gt"] = ["Unable to answer", "b"], 0
    steps = {**SSR, "test_info": [{"realtime": 1, "step": "s", "type": kind} for kind in (1, 1, 0, 1)]}
    questions = load(tmp_path, *hld, {**ITEM, "id": 99}, steps)
    rows = {q.id: {"reply": "A", "frames": n, "tokens": 2 * n} for n, q in enumerate(questions)}
    report = score_report(OVO, questions, rows, 0)
    assert report["constants"]["tasks"]["HLD"] == {"A": 1 / 3, "B": 0, "C": 2 / 3, "Unable to answer": 1}
    assert report["constants"]["tasks"]["SSR"] == {"Yes": 0.75, "No": 0.25}
    assert report["constants"]["best"] == {"HLD": "Unable to answer", "EPM": "B", "SSR": "Yes"}
    assert report["read"] == {"frames": {"mean": 3.5, "most": 7}, "tokens": {"mean": 7, "most": 14}}


def test_streaming_bench(tmp_path, video):
    folder = samples.streaming_bench(tmp_path, video)
    short, whole = (BENCHMARKS[name].load(folder).questions for name in ("streamingbench", "streamingbench-all"))
    assert [(q.id, q.start, q.end, q.answer) for q in short] == [
        ("real-1", None, 1.0, "A"), ("real-2", None, 2.0, "B"), ("real-3", None, 2.0, "B"),
        ("sqa-1", None, 1.0, "A"), ("sqa-2", None, 2.0, "B"),
    ]  # fmt: skip
    assert {q.options for q in short} == {tuple(samples.COLOURS)}  # with a space after their letters, or without
    assert short[0].video == str(tmp_path / "src/data/videos/a.mp4")
    assert [q.start for q in whole] == [None] * 5
    history = "At 1 s: What is it, 0? A. red B. green C. blue D. yellow Answer: A."
    assert (history in short[4].text, short[3].text) == (True, "What is it, 0?")
    benchmark = BENCHMARKS["streamingbench"]
    lines = words(benchmark, short[0]).split("\n\n")
    assert lines[1:] == [
        "Question: What is it, 0?",
        "Options:\nA. red\nB. green\nC. blue\nD. yellow",
        "The letter of the best option is:",
    ]
    for reply, right in (("A", True), ("A person", True), ("(A)", False), ("", False)):
        assert benchmark.reply_is_right(short[0], reply) == right


def test_streaming_bench_shows_the_minute_before(tmp_path, video):
    folder = samples.streaming_bench(tmp_path, video)
    file = folder / "src/data/questions_real.json"
    rows = json.loads(file.read_text())
    rows[0]["questions"][0]["time_stamp"] = "00:02:05"
    samples.write_rows(file, rows)
    question = BENCHMARKS["streamingbench"].load(folder).questions[0]
    assert (question.start, question.end) == (65.0, 125.0)
    rows[0]["questions"][0]["answer"] = "E"
    samples.write_rows(file, rows)
    with pytest.raises(ValueError, match="record 1: question 1: answer 'E' is none of ABCD"):
        BENCHMARKS["streamingbench"].load(folder)
    rows[0]["questions"][0] |= {"answer": "A", "time_stamp": "soon"}
    samples.write_rows(file, rows)
    with pytest.raises(ValueError, match="'time_stamp' must be a time such as 00:01:30, got 'soon'"):
        BENCHMARKS["streamingbench"].load(folder)


def test_proactive_questions_are_scored_by_their_moment(tmp_path, video):
    benchmark = BENCHMARKS["streamingbench-proactive"]
    (question,) = benchmark.load(samples.streaming_bench(tmp_path, video)).questions
    assert question.polls == tuple(range(21, 34))
    assert (question.start, question.video) == (20.0, str(tmp_path / "data/proactive/d.mp4"))
    cases = [("27 s: a star", 1, 1), ("27 s: a moon", 1, 0), ("31 s: star", 1, 1)]
    cases += [("26 s: star", 0, 0), ("33 s:", 0, 0), ("33 s: star", 0, 0)]
    for reply, time, answer in cases:
        found = benchmark.metrics([Result(question, reply)], 0)
        assert (found["time"].share.accuracy, found["answer"].share.accuracy) == (time, answer)


def test_ovbench(tmp_path, video):
    benchmark = BENCHMARKS["ovbench"]
    coin, first, second = benchmark.load(samples.ovbench(tmp_path, video)).questions
    assert (first.id, first.start, first.end, first.answer, first.letters) == ("tao-1", None, 2.0, "C", "ABCD")
    assert (second.start, second.answer, second.letters) == (1.5, "B", "AB")
    assert coin.video == str(tmp_path / "videos/coin/x/1.mp4")
    assert first.groups == {"task": "PastMemory", "sub-task": "AR", "source": "tao"}
    for reply, choice in (("C. blue", "C"), ("a person", "A"), ("The (c) one", "C"), ("Cat", ""), ("It is: B", "B")):
        assert benchmark.choice(first, reply, 0) == choice
    results = [Result(first, "C"), Result(second, ""), Result(coin, None)]
    assert benchmark.metrics(results, 0)["authors"].share.count == 1
    row = json.loads((tmp_path / "json/coin.json").read_text())[0]
    samples.write_rows(tmp_path / "json/coin.json", [{**row, "end": 0}])
    with pytest.raises(ValueError, match="'end' must be seconds after 'start'"):
        benchmark.load(tmp_path)
