"""Configurations by name, for whoever has no checkout."""

import pytest
from worlds import ROOT

from liteframe.cli.main import main
from liteframe.training.configs import config_file, packaged_configs, with_config_files


def test_names_are_those_of_the_files():
    found = {str(path.relative_to(ROOT / "configs"))[: -len(".yaml")]: path for path in ROOT.glob("configs/**/*.yaml")}
    assert packaged_configs() == found


def test_names_files_and_nonsense(tmp_path, monkeypatch):
    toy = ROOT / "configs/ctd/toy.yaml"
    assert [config_file(name, "ctd") for name in ("toy", "ctd/toy", str(toy))] == [toy] * 3
    assert config_file("ctd/toy", "") == toy
    for name, kind in (("toy", ""), ("lma/toy", "ctd"), ("stages/internvl3_8b", "lma"), ("toy.yaml", "ctd")):
        with pytest.raises(ValueError, match=f"--config {name}: no such file, .*internvl3_8b"):
            config_file(name, kind)
    words = ["fit", "--config", "toy", "--config=internvl3_8b", "--run", "toy"]
    ours = [str(toy), f"--config={toy.with_name('internvl3_8b.yaml')}"]
    assert with_config_files(words, "ctd") == ["fit", "--config", *ours, "--run", "toy"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy").write_text("a file of the user's goes first")
    assert with_config_files(words[:3], "ctd") == words[:3]
    (tmp_path / "toy").write_text("model: {optimizer: {lr: 1, betas: [0, 1], lr: 2}}")
    with pytest.raises(ValueError, match=r"toy:1: not YAML \(the key 'lr' stands twice"):
        with_config_files(words[:3], "ctd")


def test_commands_show_them_and_refuse_what_is_none(capsys):
    assert main(["config", "show", "ctd/toy"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/ctd/toy.yaml").read_text()
    assert main(["config", "show", "toy"]) == 2
    assert "toy may be ctd/toy, lma/toy, prefer/toy" in capsys.readouterr().err
    for command in ("distill", "align", "prefer"):
        with pytest.raises(SystemExit) as stop:
            main([command, "fit", "--config", "none"])
        assert stop.value.code == 2
        assert "--config none: no such file, and none of" in capsys.readouterr().err


def test_stages_get_the_words_after_their_name(monkeypatch):
    called = []
    monkeypatch.setattr("liteframe.align.command.run_stages", called.append)
    assert main(["align", "stages", "--config", "internvl3_8b"]) == 0
    assert called == [["--config", "internvl3_8b"]]
