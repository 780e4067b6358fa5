"""The folders that the README and the guide speak of: a user's videos, chats and questions, in a checkout or not."""

import json

from liteframe.toyworld.questions import write_toyworld
from worlds import ROOT


def make_checkout(place, videos):
    """A user's files beside links to the repository."""
    for name in ("train_ctd.py", "train_lma.py", "configs", "liteframe"):
        (place / name).symlink_to(ROOT / name)
    return make_user_files(place, videos)


def make_user_files(place, videos):
    """`my_videos`, `chats.jsonl` and `questions.jsonl` of a small world."""
    world = write_toyworld(place / "world", train=videos, test=1, seed=3)
    world.train_videos.rename(place / "my_videos")
    rows = [json.loads(line) for line in world.train_rows.read_text().splitlines()]
    for row in rows:
        row["video"] = row["video"].replace("train/", "my_videos/")
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [json.loads(line) for line in world.test_rows.read_text().splitlines()]
    for row in questions:
        row["video"] = f"world/{row['video']}"
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return place
