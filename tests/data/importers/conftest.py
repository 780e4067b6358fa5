import json
from types import SimpleNamespace

import pytest

from liteframe.cli.main import main


@pytest.fixture
def adapt(tmp_path, capsys):
    """Runs `liteframe manifest` and returns its exit code, rows and words."""

    def read(path):
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None

    def run(name, folder, *options, text=True):
        out, chats = tmp_path / "out.jsonl", tmp_path / "chats.jsonl"
        arguments = ["manifest", name, str(folder), "-o", str(out), *map(str, options)]
        arguments += ["--conversations", str(chats)] if text else []
        arguments += ["--videos", str(tmp_path / "videos")] if name == "finevideo" else []
        code = main(arguments)
        captured = capsys.readouterr()
        return SimpleNamespace(
            code=code, out=captured.out, err=captured.err, path=out, chats_path=chats, videos=read(out),
            chats=read(chats), bad=read(tmp_path / "out.bad.jsonl"),
        )  # fmt: skip

    return run
