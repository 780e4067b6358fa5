"""Published layouts, made up: what is read from them, what is asked, how it is scored, and which mistakes are named."""

import json

import pytest
from worlds import benchmarks as samples
from worlds.ctd import write_video

from liteframe.evaluate.benchmarks import BENCHMARKS, find_benchmark
from liteframe.evaluate.benchmarks.base import Question, Result, ask_text, check_prompt
from liteframe.evaluate.benchmarks.records import check_questions
from liteframe.evaluate.folder import score_report


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", frames=24, fps=8)


def load(name, folder):
    dataset = BENCHMARKS[name].load(folder)
    check_questions(dataset.questions, BENCHMARKS[name].layout)
    return dataset.questions


def asked(name, question, subtitles=""):
    benchmark = BENCHMARKS[name]
    prompt = benchmark.subtitle_prompt if subtitles else benchmark.prompt
    return ask_text(prompt, question, benchmark.option_format, subtitles)


def test_video_mme(tmp_path, video):
    questions = load("video-mme", samples.video_mme(tmp_path, video))
    assert [q.id for q in questions] == ["000-0", "000-1", "000-2", "001-0", "001-1", "001-2"]
    assert [q.answer for q in questions[:3]] == ["A", "B", "C"]
    assert questions[0].groups == {
        "duration": "short", "domain": "Knowledge", "sub_category": "Humanity", "task_type": "Counting Problem",
    }  # fmt: skip
    assert questions[3].video.endswith("data/abc-1.mp4")
    assert questions[0].subtitles.endswith("subtitle/abc-0.srt")
    text = asked("video-mme", questions[0]).splitlines()
    assert text[1:6] == ["What is it, 0?", "A. red.", "B. green.", "C. blue.", "D. yellow."]
    assert asked("video-mme", questions[0], "Good").splitlines()[1] == "Good"


def test_mlvu_as_published(tmp_path, video):
    questions = load("mlvu", samples.mlvu(tmp_path, video))
    assert [(q.id, q.groups["task"], q.answer) for q in questions] == [
        ("plotQA-1", "plotQA", "A"), ("plotQA-2", "plotQA", "B"), ("order-1", "order", "A"),
        ("topic_reasoning-1", "topic_reasoning", "A"), ("topic_reasoning-2", "topic_reasoning", "B"),
        ("topic_reasoning-3", "topic_reasoning", "C"),
    ]  # fmt: skip
    assert asked("mlvu", questions[0]).splitlines() == [
        *("Which, 0?", "(A) red", "(B) green", "(C) blue", "(D) yellow", "Only give the best option.", "Best option: (")
    ]
    assert [q.video for q in load("mlvu", tmp_path / "MLVU")] == [q.video for q in questions]  # one folder further in


def test_mlvu_as_copied_for_lmms_eval(tmp_path, video):
    questions = load("mlvu", samples.mlvu_parquet(tmp_path, video))
    assert [(q.letters, q.answer, q.groups["task"]) for q in questions] == [
        ("ABCD", "B", "needle"),
        ("ABCD", "C", "ego"),
    ]
    lines = asked("mlvu", questions[0]).splitlines()
    assert lines[4:] == ["(D) yellow", "Only give the best option.", "Best option: ("]


@pytest.mark.parametrize("parquet", [False, True])
def test_longvideobench(tmp_path, video, parquet):
    questions = load("longvideobench", samples.longvideobench(tmp_path, video, parquet))
    assert [(q.id, q.answer, q.letters, q.subtitle_shift) for q in questions] == [
        ("v0_0", "A", "ABCD", 100.0), ("v1_0", "E", "ABCDE", 100.0),
    ]  # fmt: skip
    assert questions[1].groups["duration_group"] == "600"


def test_hlvid(tmp_path, video):
    questions = load("hlvid", samples.hlvid(tmp_path, video))
    assert [(q.id, q.answer, q.letters, q.groups) for q in questions] == [
        ("0", "C", "ABCD", {"category": "household"}), ("1", "A", "ABCD", {"category": "av"}),
    ]  # fmt: skip
    assert asked("hlvid", questions[0]).startswith("Question: what speed, 0?\nA. 10\n")


def test_own_multiple_choice(tmp_path, video):
    samples.place(video, tmp_path / "v.mp4")
    row = {"id": 1, "video": "v.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "blue", "start": 1}
    rows = [row, {**row, "id": 2, "answer": "A", "category": "x", "end": 2.5}]
    file = samples.write_rows(tmp_path / "q.jsonl", rows)
    benchmark, source = find_benchmark(str(file), None)
    first, second = benchmark.load(source).questions
    assert (first.id, first.answer, first.start, first.end) == ("1", "B", 1.0, None)
    assert (second.answer, second.end, second.groups) == ("A", 2.5, {"category": "x"})
    assert asked("multiple-choice", first).splitlines()[:3] == ["Which?", "A. red", "B. blue"]


@pytest.mark.parametrize(
    ("options", "answer", "asked_as", "letter"),
    [
        (["A. red", "B. blue"], "B", ["A. red", "B. blue"], "B"),
        (["(A) red", "(B) blue"], "red", ["A. red", "B. blue"], "A"),
        (["A) red", "B: blue"], "B: blue", ["A. red", "B. blue"], "B"),
        (["A.M. hours", "P.M. hours"], "B", ["A. A.M. hours", "B. P.M. hours"], "B"),
        (["G. Washington", "A. Lincoln"], "A", ["A. G. Washington", "B. A. Lincoln"], "A"),
        (["A. red", "blue"], "A", ["A. A. red", "B. blue"], "A"),  # the one may be a name
    ],
)
def test_options_that_carry_their_letters_are_asked_with_one(tmp_path, video, options, answer, asked_as, letter):
    samples.place(video, tmp_path / "v.mp4")
    file = samples.write_rows(tmp_path / "q.jsonl", [{**ROW, "options": options, "answer": answer}])
    (question,) = find_benchmark(str(file), None)[0].load(file).questions
    assert asked("multiple-choice", question).splitlines()[1:3] == asked_as
    assert question.answer == letter


def results(name, folder, replies):
    """Every question with its reply."""
    questions = load(name, folder)
    rows = {q.id: {"reply": r} | ({} if r is not None else {"error": {"kind": "missing"}}) for q, r in zip(
        questions, replies, strict=True)}  # fmt: skip
    return score_report(BENCHMARKS[name], questions, rows, seed=0)


def test_m_avg_is_the_mean_of_tasks_and_other_harnesses_pool(tmp_path, video):
    # plotQA 1 of 2, order 1 of 1, topic_reasoning 1 of 3; the rule of MLVU's authors finds no letter in "B. it is".
    replies = ["A) red", "C", "(A)", "B", "B. it is", "A"]
    report = results("mlvu", samples.mlvu(tmp_path, video), replies)
    metrics = {name: metric["accuracy"] for name, metric in report["metrics"].items()}
    assert report["headline"] == "M-Avg"
    assert report["accuracy"] == pytest.approx(3 / 6)
    assert metrics["M-Avg"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    assert metrics["M-Avg, authors' letter"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert metrics["pooled, authors' letter"] == pytest.approx(2 / 6)
    assert metrics["pooled without order"] == pytest.approx(1 / 5)
    assert {k: v["accuracy"] for k, v in report["groups"]["task"].items()} == pytest.approx(
        {"plotQA": 1 / 2, "order": 1.0, "topic_reasoning": 1 / 3}
    )


def test_m_avg_is_lmms_evals(tmp_path, video):
    from lmms_eval.tasks.mlvu.utils import mlvu_aggregate_results_dev

    stems = ["1_plotQA", "2_needle", "3_ego", "4_count", "5_order", "6_anomaly_reco", "7_topic_reasoning"]
    folder = samples.mlvu(tmp_path, video, {stem: n + 1 for n, stem in enumerate(stems)})
    questions = load("mlvu", folder)
    replies = ["ABCD"[(n * n) % 4] for n in range(len(questions))]
    theirs = mlvu_aggregate_results_dev(
        [
            {"task_type": q.groups["task"], "pred_answer": reply, "answer": q.answer}
            for q, reply in zip(questions, replies, strict=True)
        ]
    )
    report = results("mlvu", folder, replies)
    assert 100 * report["metrics"]["M-Avg"]["accuracy"] == pytest.approx(theirs)


def test_longvideobench_guesses_where_nothing_is_said(tmp_path, video):
    report = results("longvideobench", samples.longvideobench(tmp_path, video), ["nothing here", "E. white"])
    assert report["unanswered"] == 0
    assert report["metrics"]["without guesses"]["accuracy"] == 0.5
    guesses = set()
    question = load("longvideobench", tmp_path)[0]
    for seed in range(40):
        choice = BENCHMARKS["longvideobench"].choice(question, "nothing here", seed)
        assert choice == BENCHMARKS["longvideobench"].choice(question, "nothing here", seed)
        guesses.add(choice)
    assert guesses == set("ABCD")  # four options: E is never guessed


def test_video_mme_by_the_authors_rule(tmp_path, video):
    replies = ["Answer: A", "Because of B", "C", "Dogs eat. A", "B", None]
    report = results("video-mme", samples.video_mme(tmp_path, video), replies)
    # A B C | A B C are right. Telling place: A, B, C, A, B; first capital: A, B, C, D, B.
    assert report["accuracy"] == pytest.approx(5 / 6)
    assert report["metrics"]["authors"]["accuracy"] == pytest.approx(4 / 6)
    assert report["of_read"]["accuracy"] == 1.0
    assert report["failed"] == {"questions": 1, "kinds": {"missing": 1}}
    assert (report["count"], report["videos"], report["of_read"]["count"]) == (6, 2, 5)
    assert report["groups"]["duration"]["long"]["accuracy"] == pytest.approx(2 / 3)
    assert list(report["groups"]["duration"]) == ["long", "short"]


def test_groups_of_numbers_are_in_their_order(tmp_path, video):
    report = results("longvideobench", samples.longvideobench(tmp_path, video), ["A", "A"])
    assert list(report["groups"]["duration_group"]) == ["15", "600"]


def broken(name, folder, video, change):
    """A sample whose first record is changed."""
    files = {
        "video-mme": ("video_mme", "videomme/test-00000-of-00001.parquet"), "mlvu": ("mlvu", "MLVU/json/1_plotQA.json"),
        "longvideobench": ("longvideobench", "lvb_val.json"), "hlvid": ("hlvid", "data/test-00000-of-00001.parquet"),
    }  # fmt: skip
    made, file = files[name]
    getattr(samples, made)(folder, video)
    path = folder / file
    rows = samples.pq.read_table(path).to_pylist() if path.suffix == ".parquet" else json.loads(path.read_text())
    rows[0] = {key: value for key, value in {**rows[0], **change}.items() if value is not None}
    samples.write_rows(path, rows)
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("video-mme", {"options": ["A. red"]}, r"row 1: 'options' has 1 options; a question has 2 to 26"),
        ("video-mme", {"options": ["A. red", "C. blue"]}, r"option 'C. blue' of 'options' should start with 'B.'"),
        ("video-mme", {"answer": "E"}, r"row 1: answer 'E' is none of ABCD"),
        ("video-mme", {"videoID": "../../etc/passwd"}, "leads out of"),
        ("mlvu", {"candidates": "red"}, r"record 1: 'candidates' must be a list of texts"),
        ("mlvu", {"answer": "pink"}, r"1_plotQA.json: record 1: answer 'pink' is no option of"),
        ("mlvu", {"video": None}, r"record 1: lacks 'video'"),
        ("longvideobench", {"correct_choice": None}, "the test split has no public answers"),
        ("longvideobench", {"correct_choice": 4}, r"'correct_choice' is 4; there are 4 options, counted from 0"),
        ("hlvid", {"question": "What speed?"}, "should list its options, one a line"),
        ("hlvid", {"answer": "E"}, "answer 'E' is none of the letters ABCD"),
        ("hlvid", {"video_path": "/etc/passwd"}, "leads out of"),
    ],
)
def test_mistakes_in_records_are_named(tmp_path, video, name, change, message):
    with pytest.raises(ValueError, match=message):
        load(name, broken(name, tmp_path, video, change))


ROW = {"id": "1", "video": "v.mp4", "question": "Which?", "options": ["red", "blue"], "answer": "A"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ROW, "{oops"], r"q\.jsonl:2: not JSON"),
        ([ROW, [1]], r"q\.jsonl:2: a list, not an object"),
        ([ROW, ROW], "two questions have the id '1'"),
        ([{**ROW, "options": ["red"]}], r"q\.jsonl:1: 'options' has 1 options"),
        ([{**ROW, "options": ["B", "A"], "answer": "A"}], "is a letter and also the text of option B; use letters"),
        ([{**ROW, "options": ["B. red", "A. blue"]}], r"q\.jsonl:1: options of 'options' carry the letters BA"),
        ([{**ROW, "start": -1}], r"'start' must be seconds, 0 or more, got -1"),
        ([{**ROW, "start": 10**400}], r"'start' must be seconds, 0 or more, got 1000"),
        ([{**ROW, "start": 2, "end": 1}], r"the span from 2.0 s to 1.0 s is empty"),
        ([{**ROW, "question": " "}], r"'question' must be a text that is not empty"),
        ([{**ROW, "video": "w.mp4"}], "none of the 1 videos is there"),
        ([ROW, {**ROW, "id": "2", "options": None}], r"q\.jsonl:2: 'options' must be a list of texts"),
        ([{**ROW, "options": None}, ROW], r"q\.jsonl:2: has 'options', other lines have none"),
        ([], "there are no questions"),
    ],
)
def test_mistakes_in_own_questions_are_named(tmp_path, video, lines, message):
    samples.place(video, tmp_path / "v.mp4")
    file = tmp_path / "q.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(ValueError, match=message):
        load(find_benchmark(str(file), None)[0].name, file)


@pytest.mark.parametrize(
    ("name", "change", "letter"),
    [
        ("video-mme", {"options": ["A. C", "B. A", "C. D", "D. B"], "answer": "A"}, "A"),  # a letter, as published
        ("mlvu", {"candidates": ["C", "A", "D", "B"], "answer": "A"}, "B"),  # an option, as published
    ],
)
def test_options_that_are_letters_themselves(tmp_path, video, name, change, letter):
    assert load(name, broken(name, tmp_path, video, change))[0].answer == letter


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"none: no such folder; expected videomme/test-"):
        load("video-mme", tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"expected lvb_val.json .*; found other"):
        load("longvideobench", tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        find_benchmark(str(tmp_path / "q.jsonl"), None)
    with pytest.raises(ValueError, match=r"neither a benchmark .* nor a .jsonl file"):
        find_benchmark("video_mme", "folder")
    with pytest.raises(ValueError, match="mlvu needs its folder"):
        find_benchmark("mlvu", None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-00000-of-00001.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="not a parquet file"):
        load("hlvid", tmp_path)


def test_prompts():
    question = Question("1", "v.mp4", "What {options}?", "A", ("{question}", "b"), "AB")
    assert ask_text("{options}|{question}", question, "{letter}: {text}") == "A: {question}\nB: b|What {options}?"
    check_prompt("{question}", False)
    with pytest.raises(ValueError, match=r"unknown places \['video'\]"):
        check_prompt("{video} {question}", False)
    with pytest.raises(ValueError, match=r"lacks {question}"):
        check_prompt("{options}", False)
    with pytest.raises(ValueError, match=r"lacks {subtitles}"):
        check_prompt("{question}", True)


def test_a_result_without_a_reply_is_wrong_whatever_the_rule():
    question = Question("1", "v.mp4", "?", "A", ("a", "b"), "AB")
    for benchmark in BENCHMARKS.values():
        if benchmark.name in ("video-mme", "longvideobench"):
            metrics = benchmark.metrics([Result(question, None)], 0)
            assert all(metric.share.accuracy == 0 for metric in metrics.values())
