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
