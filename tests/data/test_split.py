import hashlib
import os
import random

import pytest

from liteframe.data.manifest import VideoEntry, hold_out


def entries(root, count=400):
    return [VideoEntry(f"{root}/{n % 7}/video_{n}.mp4") for n in range(count)]


def names(side, root):
    return {entry.video.removeprefix(root) for entry in side}


def test_fraction_and_stability():
    train, held = hold_out(entries("/a"), 0.1)
    assert 20 <= len(held) <= 60
    assert len(train) + len(held) == 400
    moved = entries("/somewhere/else")
    random.Random(0).shuffle(moved)
    assert names(hold_out(moved, 0.1)[1], "/somewhere/else") == names(held, "/a")
    grown = names(hold_out(entries("/a", 800), 0.1)[1], "/a")
    assert names(held, "/a") <= grown


def test_rows_of_one_file_stay_together():
    rows = [VideoEntry(f"/a/{n // 5}.mp4", start=float(n % 5)) for n in range(200)]
    train, held = hold_out(rows, 0.3)
    assert not {entry.video for entry in train} & {entry.video for entry in held}


def test_a_folder_beside_the_first_changes_nothing():
    """The names of one folder give what they always gave; the digest is that of the file's own name, by hand."""
    first = [VideoEntry(f"/d/a/{n:06d}.mp4") for n in range(571)]
    others = [VideoEntry(f"/d/b/{n:06d}.mp4") for n in range(100)] + [VideoEntry(f"/else/c/{n}.mov") for n in range(50)]
    held = names(hold_out(first, 0.05)[1], "")
    digests = {e.video: hashlib.sha256(os.path.basename(e.video).encode()).digest() for e in first}
    assert held == {video for video, digest in digests.items() if int.from_bytes(digest[:7], "big") < 0.05 * 2**56}
    train, grown = hold_out(first + others, 0.05)
    assert held == {video for video in names(grown, "") if video.startswith("/d/a/")}
    assert {os.path.basename(e.video) for e in grown}.isdisjoint(os.path.basename(e.video) for e in train)


def test_one_name_for_all_is_told_apart_by_its_folders():
    rows = [VideoEntry(f"/d/{n:06d}/video.mp4") for n in range(400)]
    held = names(hold_out(rows, 0.1)[1], "")
    assert 20 <= len(held) <= 60
    assert held <= names(hold_out([*rows, *entries("/d", 500)], 0.1)[1], "") | names(entries("/d", 500), "")
    assert len(hold_out([VideoEntry("/d/a/v.mp4"), VideoEntry("/d/b/v.mp4")], 0.1)[1]) == 1


def test_any_name_of_a_file_has_a_place():
    rows = [VideoEntry(os.fsdecode(b"/d/\xff%d.mp4" % n)) for n in range(100)]
    train, held = hold_out(rows, 0.1)
    assert len(train) + len(held) == 100


@pytest.mark.parametrize(("count", "fraction"), [(2, 0.01), (3, 0.99)])
def test_both_sides_get_one(count, fraction):
    train, held = hold_out(entries("/a", count), fraction)
    assert train
    assert held


def test_nothing_to_hold_out():
    assert hold_out(entries("/a", 1), 0.5)[1] == []
    assert hold_out(entries("/a", 9), 0)[1] == []
    with pytest.raises(ValueError, match="val_fraction is 1"):
        hold_out(entries("/a", 9), 1)
