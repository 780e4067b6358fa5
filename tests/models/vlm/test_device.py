"""--device of ask, eval and bench: what is not there is named before a model is loaded."""

import pytest
import torch

from liteframe.cli.main import main
from liteframe.models.vlm.load import find_device


@pytest.mark.parametrize(
    ("count", "name", "complaint"),
    [
        (0, "cuda", "no CUDA device here; use --device cpu"),
        (1, "cuda:1", "only 1 CUDA device here; use --device cuda:0"),
        (2, "cuda:2", "only 2 CUDA devices here"),
        (0, "gpu", "--device gpu is no device"),
    ],
)
def test_a_device_that_is_not_there_is_named(monkeypatch, count, name, complaint):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=complaint):
        find_device(name)


def test_the_first_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(None) == torch.device("cuda")
    assert find_device("cuda:1").index == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device(None) == torch.device("cpu")


def test_commands_say_so_before_they_load_anything(capsys, tmp_path):
    words = ["--vlm", str(tmp_path / "nothing"), "--device", "cuda:63"]
    for command in (["ask", str(tmp_path / "a.mp4"), "What?"], ["bench", "encoder", "--tiny"]):
        assert main([*command, *(words if command[0] == "ask" else words[2:])]) == 2
        assert "--device cuda:63" in capsys.readouterr().err
