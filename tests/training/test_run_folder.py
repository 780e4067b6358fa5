import json
import shutil
import zipfile

import pytest

from liteframe.files import write_atomically, write_json
from liteframe.training.run_folder import RunFolder, append_rows, drop_rows_from


@pytest.mark.parametrize(
    "trace", ["config.yaml", "report.json", "checkpoints/last.ckpt", "encoder/config.json", "events.out.tfevents.1.x"]
)
def test_any_trace_of_a_run_protects_it(tmp_path, trace):
    path = tmp_path / "run" / trace
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        RunFolder(tmp_path / "run").claim(resume=False)


def test_new_and_resumed(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert run.claim(resume=False) is None
    assert not run.path.exists()
    with pytest.raises(ValueError, match="leave out --resume"):
        run.claim(resume=True)
    run.last_checkpoint.parent.mkdir(parents=True)
    with zipfile.ZipFile(run.last_checkpoint, "w") as archive:
        archive.writestr("data.pkl", b"")
    with (
        pytest.warns(UserWarning, match="cannot be checked"),
        pytest.raises(ValueError, match=r"config\.yaml is missing"),
    ):
        run.claim(resume=True)
    run.config.touch()
    with pytest.warns(UserWarning, match="cannot be checked"):
        assert run.claim(resume=True) == run.last_checkpoint


@pytest.mark.parametrize("result", ["encoder/config.json", "adapter/adapter_config.json", "report.json"])
def test_auto_starts_where_nothing_was_trained(tmp_path, result):
    run = RunFolder(tmp_path / "run")
    assert run.claim(resume="auto") is None
    for trace in ("config.yaml", "events.out.tfevents.1.x", "checkpoints/.step-1.ckpt.7.tmp"):  # a run stopped early
        (run.path / trace).parent.mkdir(parents=True, exist_ok=True)
        (run.path / trace).touch()
    assert run.claim(resume="auto") is None
    (run.path / result).parent.mkdir(parents=True, exist_ok=True)
    (run.path / result).touch()
    with pytest.raises(ValueError, match=r"already holds a run.*bring its checkpoints back"):
        run.claim(resume="auto")


@pytest.mark.parametrize("trained", ["checkpoints/a.ckpt", "encoder/config.json", "dumps/step-0/turn.pt"])
def test_a_run_that_never_began_is_forgotten_and_no_other(tmp_path, trained):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    for name in ("config.yaml", "events.out.tfevents.1.x", "hparams.yaml", "bad_videos.jsonl"):
        (run.path / name).touch()
    (run.path / trained).parent.mkdir(parents=True)
    (run.path / trained).touch()
    run.forget()
    assert (run.path / "config.yaml").exists()
    shutil.rmtree(run.path / trained.split("/")[0])
    run.forget()
    assert [path.name for path in run.path.iterdir()] == ["bad_videos.jsonl"]
    assert run.claim(resume=False) is None


def test_rows_of_steps_that_are_done_again_are_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    drop_rows_from(path, 3)
    append_rows(path, [{"step": step, "norm": "nan"} for step in (1, 4)])
    append_rows(path, [{"step": 7}])
    with path.open("a") as file:
        file.write('{"step": 9, "no')  # the machine went down
    drop_rows_from(path, 7)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 4]


def test_a_change_of_settings_is_undone_with_the_steps_that_followed_it(tmp_path):
    run = RunFolder(tmp_path)
    assert run.changes() == []
    run.record_changes(4, {"model.optimizer.lr": (0.1, 0.2)})
    run.record_changes(9, {"model.loss": ("mse", "smooth_l1")})
    assert [row["step"] for row in run.changes()] == [4, 9]
    # The checkpoint of step 9 was damaged: that of step 6 was made with 0.2 and mse, and both stay.
    run.record_changes(6, {})
    assert run.changes() == [{"step": 4, "setting": "model.optimizer.lr", "from": 0.1, "to": 0.2}]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "run").claim(resume=False)


def test_writes_are_whole_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "a.json"
    write_json(target, {"a": "ä"})
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": "ä"}

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(target, b"half")
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": "ä"}
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]
