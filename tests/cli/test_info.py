"""`liteframe info`: the paper's rows, and a description of a saved encoder."""

import subprocess
import sys

import pytest

from liteframe import LiteFrameConfig, LiteFrameEncoder
from liteframe.cli.main import main


def test_papers_rows_and_facts(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for words in (
        "304.01M / 158.80T",
        "86.31M / 44.81T",
        "87.15M / 17.92T",
        "22.34M / 4.55T",
        "5.86M / 1.17T",
    ):
        assert words in out


def test_describes_a_saved_encoder(tmp_path, capsys):
    config = LiteFrameConfig(
        dim=16, depth=2, heads=2, patch_size=4, image_size=16, teacher_dim=8, downsample={1: (2, 2, 2)}, clip_frames=4
    )
    encoder = LiteFrameEncoder(config)
    encoder.save_pretrained(tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"({sum(p.numel() for p in encoder.parameters()):,})" in out
    assert "[B,T/2,2,2,8]" in out
    assert "(2, 2, 2) after block 1" in out


def test_no_encoder_is_an_error(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "config.json does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["info", "--help"]])
def test_help(arguments):
    done = subprocess.run([sys.executable, "-m", "liteframe", *arguments], capture_output=True, text=True, check=True)
    assert "saved encoder folder" in done.stdout
