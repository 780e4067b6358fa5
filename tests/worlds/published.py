"""Small samples of data sets in exactly the layouts in which they are published. Videos are a few made-up bytes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def touch(path: Path, content: bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_lines(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write_list(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1))
    return path


def sharegpt_row(name: str, caption: str | None = "A dog runs over a field.", **changes):
    captions = [{"idx": "0", "content": "A dog."}, {"idx": "24", "content": "It runs."}]
    captions += [] if caption is None else [{"idx": "-1", "content": caption}]
    stem = Path(name).stem
    return {
        "video_id": stem, "video_path": name, "zip_folder": "panda_videos_1.zip", "keyframe": [0, 24],
        "timestamp": ["00:00:00.000", "00:00:02.000"], "fps": 30.0, "captions": captions, **changes,
    }  # fmt: skip


def llava_row(video: str, *pairs, first: str = "<image>\n"):
    turns = []
    for i, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": (first if i == 0 else "") + question})
        turns.append({"from": "gpt", "value": answer})
    return {
        "id": Path(video).stem,
        "conversations": turns,
        "data_source": "0_30_s_academic_v0_1",
        "video": video,
    }


def clevrer_scene(scene: int, *, answers: bool = True):
    def choice(number, text, right):
        row = {"choice_id": number, "choice": text, "program": []}
        return row | ({"answer": "correct" if right else "wrong"} if answers else {})

    described = {
        "question_id": 0, "question_type": "descriptive", "question_subtype": "query_color", "program": [],
        "question": "What color is the cube?",
    }  # fmt: skip
    explained = {
        "question_id": 1, "question_type": "explanatory", "program": [],
        "question": "Which is responsible for the collision?",
        "choices": [choice(0, "the cube", True), choice(1, "the sphere", False), choice(2, "the cylinder", True)],
    }  # fmt: skip
    predicted = {
        "question_id": 2, "question_type": "predictive", "program": [], "question": "What will happen next?",
        "choices": [choice(0, "the cube exits", False), choice(1, "the cube hits the sphere", False)],
    }  # fmt: skip
    if answers:
        described["answer"] = "blue"
    filename = f"video_{scene:05d}.mp4"
    return {"scene_index": scene, "video_filename": filename, "questions": [described, explained, predicted]}


def finevideo_row(number: int, content: bytes | None = None):
    metadata = {
        "title": f"Video {number}", "description": f"A talk, number {number}.", "fps": 29.97,
        "qAndA": [{"question": "Who talks?", "answer": "She."}, {"question": "Where?", "answer": f"Room {number}."}],
        "scenes": [{"sceneId": 1, "title": "Start", "timestamps": {"start_timestamp": "00:00:00.000"}}],
    }  # fmt: skip
    text = {
        "content_fine_category": "Talks", "content_metadata": metadata, "duration_seconds": 4, "resolution": "640x360",
        "youtube_title": f"Talk {number}", "youtube_channel": "A channel", "original_video_filename": f"x{number}.mp4",
    }  # fmt: skip
    return {"mp4": b"mp4 of %d" % number if content is None else content, "json": text}


def write_parquet(path: Path, rows, group: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def sharegpt4video(folder: Path) -> Path:
    touch(folder / "panda" / "a.mp4")
    touch(folder / "zip_folder" / "pexels" / "b.mp4")
    write_lines(folder / "sharegpt4video_40k.jsonl", [sharegpt_row("panda/a.mp4"), sharegpt_row("pexels/b.mp4")])
    return folder


def llava_video(folder: Path) -> Path:
    subset = folder / "0_30_s_academic_v0_1"
    video = "academic_source/Charades/a.mp4"
    touch(subset / video)
    caption = llava_row(video, ("Please describe the video.", "A man opens a door."))
    asked = llava_row(video, ("What does he open?", "A door."), ("And then?", "He leaves."))
    chosen = llava_row(video, ("What is opened?\nA. a door\nB. a box\nAnswer with the letter.", "A."))
    write_list(subset / "0_30_s_academic_v0_1_cap_processed.json", [caption])
    write_list(subset / "0_30_s_academic_oe_v0_1_qa_processed.json", [asked])
    write_list(subset / "0_30_s_academic_mc_v0_1_qa_processed.json", [chosen])
    return folder


def clevrer(folder: Path) -> Path:
    for split, scenes in {"train": (0, 1003), "validation": (10000,), "test": (15000,)}.items():
        for scene in scenes:
            low = scene // 1000 * 1000
            touch(folder / f"video_{split}" / f"video_{low:05d}-{low + 1000:05d}" / f"video_{scene:05d}.mp4")
        write_list(folder / f"{split}.json", [clevrer_scene(scene, answers=split != "test") for scene in scenes])
    return folder


def finevideo(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [finevideo_row(i) for i in range(3)])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [finevideo_row(i) for i in range(3, 5)])
    return folder


NTU_CLIPS = ("S001C001P001R001A001", "S001C002P003R002A013", "S002C003P008R001A060", "S018C001P103R002A120")


def ntu_rgbd(folder: Path) -> Path:
    for name in NTU_CLIPS:
        touch(folder / "nturgb+d_rgb" / f"{name}_rgb.avi")
    touch(folder / "nturgb+d_ir" / "S001C001P001R001A001_ir.avi")
    return folder


PUBLISHED = {
    "sharegpt4video": sharegpt4video, "llava-video-178k": llava_video, "finevideo": finevideo, "clevrer": clevrer,
    "ntu-rgbd": ntu_rgbd,
}  # fmt: skip
