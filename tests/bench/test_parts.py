"""A measurement in parts: what fails, what waits for a check, what is kept when it is stopped, and gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from liteframe.bench.parts import Measurement, Part

FIXED = {"device": "some card", "torch": "2.14"}


def measured(folder, *parts):
    saved = []
    one = Measurement(folder / "gpu.json", FIXED, {"minutes": 8}, save=lambda r: saved.append(len(r["parts"])))
    return one.run(parts), json.loads((folder / "gpu.json").read_text())["parts"], saved


def rows(*statuses):
    return lambda: iter([{"number": n, "status": status} for n, status in enumerate(statuses)])


def broken():
    yield {"number": 0}
    raise ZeroDivisionError("by nought")


def lacking():
    import no_such_module  # noqa: F401

    yield {}


def test_a_part_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    parts = [
        Part("breaks", broken), Part("lacks", lacking), Part("right", rows("ok")), Part("wrong", rows("ok", "wrong")),
        Part("half", rows("ok", "failed: no compiler")), Part("speed", rows("ok"), after=("right",)),
        Part("speed of what is wrong", rows("ok"), after=("right", "wrong", "half")),
    ]  # fmt: skip
    code, found, saved = measured(tmp_path, *parts)
    assert code == 1
    assert {name: part["status"] for name, part in found.items()} == {
        "breaks": "failed: ZeroDivisionError: by nought", "lacks": "skipped: no_such_module is not installed",
        "right": "ok", "wrong": "wrong", "half": "failed in part", "speed": "ok",
        "speed of what is wrong": "not measured: wrong, half did not pass",
    }  # fmt: skip
    assert found["breaks"]["rows"] == [{"number": 0}]
    assert "in broken" in found["breaks"]["error"]
    assert found["speed of what is wrong"]["rows"] == []
    assert saved == sorted(saved)


def test_the_record_is_complete_after_each_row_and_gone_on_with(tmp_path):
    seen = []

    def slow():
        for number in range(3):
            yield {"number": number}
            seen.append(json.loads((tmp_path / "gpu.json").read_text())["parts"]["slow"]["rows"][-1]["number"])

    assert measured(tmp_path, Part("slow", slow), Part("breaks", broken))[0] == 1
    assert seen == [0, 1, 2]
    code, found, _ = measured(tmp_path, Part("slow", broken), Part("breaks", rows("ok")))  # slow is done
    assert (code, found["slow"]["status"], found["breaks"]["status"]) == (0, "ok", "ok")
    with pytest.raises(ValueError, match=r"gpu\.json was measured with device 'some card', now it is 'another'"):
        Measurement(tmp_path / "gpu.json", {**FIXED, "device": "another"}, {})


def test_a_part_that_takes_its_time_ends_where_others_wait(tmp_path):
    code, found, _ = measured(tmp_path, Part("long", rows("ok", "ok"), seconds=0), Part("last", rows("ok"), seconds=0))
    assert code == 1
    assert found["long"]["status"] == "stopped after 0 s: other parts waited"
    assert len(found["long"]["rows"]) == 1
    assert (found["last"]["status"], len(found["last"]["rows"])) == ("ok", 1)


OVERDUE = """
import sys, time
from pathlib import Path
from liteframe.bench.parts import Measurement, Part

def never():
    yield {"number": 7}
    time.sleep(600)

sys.exit(Measurement(Path(sys.argv[1]), {}, {}, minutes=1 / 60).run([Part("never", never), Part("later", never)]))
"""


def test_it_is_over_when_time_is_up_whatever_a_part_does(tmp_path):
    done = subprocess.run([sys.executable, "-c", OVERDUE, tmp_path / "gpu.json"], timeout=60, capture_output=True)
    assert done.returncode == 1
    assert b"time was up" in done.stdout
    parts = json.loads(Path(tmp_path / "gpu.json").read_text())["parts"]
    assert parts["never"]["status"] == "stopped: time was up"
    assert (parts["never"]["rows"], "later" in parts) == ([{"number": 7}], False)
