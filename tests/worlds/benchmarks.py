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
