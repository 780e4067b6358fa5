"""Small samples of published benchmarks, in their own layouts, with tiny videos that can be read."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

COLOURS = ["red", "green", "blue", "yellow"]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def place(video, *paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)


def video_mme(folder, video):
    """Two videos of three questions; the first has subtitles."""
    rows = []
    for v, duration in enumerate(("short", "long")):
        for q in range(3):
            rows.append(
                {
                    "video_id": f"00{v}", "duration": duration, "domain": "Knowledge", "sub_category": "Humanity",
                    "url": "https://example.org", "videoID": f"abc-{v}", "question_id": f"00{v}-{q}",
                    "task_type": ("Counting Problem", "OCR Problems", "Action Reasoning")[q],
                    "question": f"What is it, {q}?", "answer": "ABCD"[q],
                    "options": [f"{letter}. {text}." for letter, text in zip("ABCD", COLOURS, strict=True)],
                }
            )  # fmt: skip
    write_rows(folder / "videomme/test-00000-of-00001.parquet", rows)
    place(video, folder / "data/abc-0.mp4", folder / "data/abc-1.mp4")
    (folder / "subtitle").mkdir()
    (folder / "subtitle/abc-0.srt").write_text(
        '1\n00:00:00,000 --> 00:00:01,000\n<font color="white" size=".72c">Good &amp; early</font>\n\n'
        "2\n00:00:02,900 --> 00:00:03,100\nat the\nend\n"
    )
    return folder


def mlvu(folder, video, sizes=None):
    """JSON a task: `sizes` questions each, in MLVU/ as downloaded."""
    sizes = sizes or {"1_plotQA": 2, "5_order": 1, "7_topic_reasoning": 3}
    for stem, count in sizes.items():
        rows = [
            {
                "video": f"{n}.mp4", "duration": 3.0, "question": f"Which, {n}?", "candidates": COLOURS,
                "answer": COLOURS[n % 4], "question_type": stem.split("_", 1)[1],
            }
            for n in range(count)
        ]  # fmt: skip
        write_rows(folder / f"MLVU/json/{stem}.json", rows)
        place(video, *(folder / f"MLVU/video/{stem}/{n}.mp4" for n in range(count)))
    return folder


def mlvu_parquet(folder, video):
    """The copy made for lmms-eval: options inside the question, the answer a letter."""
    question = "Which one?\n(A) red\n(B) green\n(C) blue\n(D) yellow"
    rows = [
        {
            "video_name": f"{n}.mp4", "duration": "3.0", "question": question, "candidates": "['red', 'green']",
            "answer": "BC"[n], "task_type": ("needle", "ego")[n], "question_id": str(n),
        }
        for n in range(2)
    ]  # fmt: skip
    write_rows(folder / "data/test-00000-of-00001.parquet", rows)
    place(video, folder / "0.mp4", folder / "1.mp4")
    return folder


def longvideobench(folder, video, parquet=False):
    rows = []
    for n, (group, right) in enumerate(((15, 0), (600, 4))):
        row = {
            "video_id": f"v{n}", "id": f"v{n}_0", "video_path": f"v{n}.mp4", "subtitle_path": f"v{n}_en.json",
            "question": f"Where, {n}?", "duration": 3.0, "duration_group": group, "question_category": "S2E",
            "topic_category": "KH-Knowledge", "starting_timestamp_for_subtitles": 100.0, "correct_choice": right,
        }  # fmt: skip
        options = [*COLOURS, "white"] if n else COLOURS
        if parquet:
            row |= {f"option{i}": options[i] if i < len(options) else "N/A" for i in range(5)}
        else:
            row["candidates"] = options
        rows.append(row)
    write_rows(folder / ("validation-00000-of-00001.parquet" if parquet else "lvb_val.json"), rows)
    place(video, folder / "videos/v0.mp4", folder / "videos/v1.mp4")
    lines = [{"timestamp": [100.0, 101.2], "text": "first"}, {"timestamp": [150.0, 151.0], "text": "beyond"}]
    write_rows(folder / "subtitles/v0_en.json", lines)
    clock = [{"start": "00:01:41.200", "end": "00:01:41.300", "line": "short"}]
    write_rows(folder / "subtitles/v1_en.json", clock)
    return folder


def hlvid(folder, video):
    tail = "\nA. 10\nB. 20\nC. 30\nD. 40\nPlease answer directly with the letter of the correct answer."
    rows = [
        {"question_id": n, "category": ("household", "av")[n], "video_path": f"clip_{n}.mp4",
         "question": f"Question: what speed, {n}?{tail}", "answer": "CA"[n]}
        for n in range(2)
    ]  # fmt: skip
    write_rows(folder / "data/test-00000-of-00001.parquet", rows)
    place(video, folder / "videos/clip_0.mp4", folder / "videos/clip_1.mp4")
    return folder


OVO_TASKS = {
    "EPM": 297, "ASI": 148, "HLD": 186, "OCR": 149, "ACR": 109, "ATR": 116, "STU": 178, "FPD": 101, "OJR": 184,
    "REC": 82, "SSR": 42, "CRR": 48,
}  # fmt: skip
OVO_QUERIES = {"REC": 698, "SSR": 629, "CRR": 240}
OVO_VIDEOS = 644


def ovo_items(counts=OVO_TASKS, queries=OVO_QUERIES, videos=OVO_VIDEOS, seconds=9):
    """Made-up items with the fields and the counts of OVO-Bench's file; each query has a number in its words."""
    items, asked = [], 0
    for task, count in counts.items():
        for n in range(count):
            item = {"id": len(items), "task": task, "video": f"some/{len(items) % videos}.mp4"}
            if task not in queries:
                options = [f"option {k} of {asked}" for k in range(2 + asked % 4)]
                gt = asked % 7 % len(options)
                # As in the published file, `answer` is not always the option's text.
                answer = options[gt] if asked % 3 else options[gt].upper()
                realtime = 0.5 + (asked % seconds) if asked % 2 else 1 + asked % seconds
                item |= {
                    "question": f"What is query {asked}?",
                    "answer": answer,
                    "options": options,
                    "gt": gt,
                    "realtime": realtime,
                }
                asked += 1
            else:
                info = []
                for _ in range(queries[task] // count + (n < queries[task] % count)):
                    query = {"realtime": 1 + asked % seconds}
                    query |= {"count": asked % 13} if task == "REC" else {"type": asked % 2}
                    info.append(query | ({"step": f"step of query {asked}"} if task == "SSR" else {}))
                    asked += 1
                who = f"Who came in item {len(items)}?"
                words = {
                    "REC": {"activity": f"jump in item {len(items)}", "start_times": [1], "end_times": [2]},
                    "SSR": {"tutorial": "bread", "all_steps": ["knead"], "start_time": 1, "end_time": 2},
                    "CRR": {"question": who, "answer": "Ann", "ask_time": 1, "clue_time": 4},
                }  # fmt: skip
                item |= {**words[task], "test_info": info}
            items.append(item)
    return items


def streaming_bench(folder, video):
    """Real-time, sequential and proactive questions about videos of 3 seconds."""

    def question(n, **changes):
        options = [f"{letter}. {text}" for letter, text in zip("ABCD", COLOURS, strict=True)]
        return {
            "task_type": ("Object Recognition", "Counting")[n % 2], "question": f"What is it, {n}?",
            "time_stamp": f"00:00:0{1 + n}", "answer": "ABCD"[n], "options": options, "required_ability": "memory",
            **changes,
        }  # fmt: skip

    def record(name, *questions):
        return {
            "video_path": f"./videos/{name}.mp4",
            "time": "[0:00:00 - 0:00:10]",
            "video_categories": "x",
            "questions": list(questions),
        }

    bare = question(1, options=[f"{letter}.{text}" for letter, text in zip("ABCD", COLOURS, strict=True)])
    write_rows(
        folder / "src/data/questions_real.json", [record("a", question(0)), record("b", bare), record("a", question(1))]
    )
    sequence = [record("c", question(n)) for n in range(2)]
    write_rows(folder / "src/data/questions_sqa.json", [sequence])
    row = {
        "task_type": "Proactive Output", "question": "When a star comes, say \"star\".", "time_stamp": "00:00:20",
        "ground_truth_time_stamp": "00:00:29", "ground_truth_output": "star", "required_ability": "memory",
    }  # fmt: skip
    write_rows(folder / "src/data/questions_proactive_50.json", [record("d", row)])
    place(video, *(folder / f"src/data/videos/{name}.mp4" for name in "abc"), folder / "data/proactive/d.mp4")
    return folder


def ovbench(folder, video):
    row = {
        "video": "x/1.mp4", "start": 0, "end": 2, "middle_frame_timestamp": 1, "question": "What, 1?",
        "candidates": COLOURS, "answer": "blue", "answer_type": "PastMemory", "sub_answer_type": "AR",
    }  # fmt: skip
    two = {**row, "start": 1.5, "end": 3, "fps": 8, "candidates": ["yes", "no"], "answer": "no"}
    write_rows(folder / "json/tao.json", [row, two])
    write_rows(folder / "json/coin.json", [row])
    place(video, folder / "videos/tao/x/1.mp4", folder / "videos/coin/x/1.mp4")
    return folder
