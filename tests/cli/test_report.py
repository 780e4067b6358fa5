"""The page of a run shows what its files hold, and needs nothing else."""

import base64
import html.parser
import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from liteframe.cli.main import main


class Reader(html.parser.HTMLParser):
    """Text outside of pictures, pictures, and whatever a browser would have to fetch."""

    def __init__(self, page):
        super().__init__()
        self.words, self.images, self.fetched, self.drawings, self.drawing = [], [], [], 0, False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.drawing = self.drawing or tag == "svg"
        self.drawings += tag == "svg"
        self.images += [values["src"]] if tag == "img" else []
        self.fetched += [v for k, v in values.items() if k in ("src", "href") and not v.startswith(("data:", "#"))]
        self.fetched += [tag] if tag in ("link", "script", "iframe") else []

    def handle_endtag(self, tag):
        self.drawing = self.drawing and tag != "svg"

    def handle_data(self, data):
        if not self.drawing and data.strip():
            self.words.append(data.strip())


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "first"
    events = SummaryWriter(str(folder))
    for step in range(1, 40):
        events.add_scalar("train/loss", 1 / step, step)
    events.add_scalar("val/token_cosine", 0.9, 39)
    events.close()
    (folder / "config.yaml").write_text("run: runs/first\n")
    (folder / "panel.png").write_bytes(b"a picture")
    bad = {"path": "<b>&.mp4", "kind": "decode", "reason": "moov atom not found", "remedy": "copy it again"}
    (folder / "bad_videos.jsonl").write_text(f"{json.dumps(bad)}\n" * 52)
    return folder


def page(run, *exports):
    assert main(["report", str(run), *map(str, exports)]) == 0
    read = Reader((run / "report.html").read_text())
    assert read.fetched == []
    return read


def test_unfinished_run(run):
    read = page(run)
    assert "not finished: no report.json" in read.words
    assert read.drawings == 2
    assert base64.b64decode(read.images[0].partition(",")[2]) == b"a picture"
    assert read.words.count("<b>&.mp4") == 50
    assert "and 2 more in bad_videos.jsonl" in read.words
    assert "52 decode" in read.words
    assert "run: runs/first" in read.words


def test_finished_run_and_its_export(run, tmp_path):
    student = {"model_type": "liteframe_vision", "parameters": 87_146_752, "clip_frames": 256}
    report = {"kind": "ctd", "steps": 39, "date": "2026-11-30", "figures": {"val/token_cosine": 0.98765432},
              "student": student, "command": ["train_ctd.py", "fit"], "data": {"cache": None, "kinds": {}}}  # fmt: skip
    (run / "report.json").write_text(json.dumps(report))
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "parity.json").write_text('{"max_abs_difference": 2e-5, "tolerance": 1e-4, "cases": []}')
    words = page(run, tmp_path / "export").words
    assert "CTD first" in words
    assert "0.98765" in words
    assert "87,146,752" in words  # the paper's student, and its FLOPs with attention: 17.92T and 3.46T
    assert f"{17_920_642_449_408 + 3_460_809_621_504:,}" in words
    assert "largest difference 2e-05, within 0.0001" in words
    (tmp_path / "export" / "parity.json").write_text('{"max_abs_difference": 2e-3, "tolerance": 1e-4}')
    assert "largest difference 0.002, ABOVE 0.0001" in page(run, tmp_path / "export").words


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert main(["report", str(run), str(run)]) == 2
    assert "no parity.json" in capsys.readouterr().err
