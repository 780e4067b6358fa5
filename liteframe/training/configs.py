"""Configurations that come with LiteFrame, by name: the repository's `configs/`, which the package brings along."""

from collections.abc import Sequence
from pathlib import Path

from liteframe.texts import read_yaml

COMMANDS = {"ctd": "distill", "lma": "align", "prefer": "prefer"}  # by kind of run

_PACKAGE = Path(__file__).resolve().parents[1]


def packaged_configs() -> dict[str, Path]:
    """Each configuration's file under its name, such as "ctd/internvl3_8b"."""
    folder = _PACKAGE / "configs"
    if not folder.is_dir():  # a checkout
        folder = _PACKAGE.parent / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def run_kind(config: Path) -> str:
    """The kind of run that a whole configuration describes, by what it trains and on what: "ctd", "lma" or "prefer"."""
    settings = read_yaml(config)
    model, data = (settings.get(key) or {} for key in ("model", "data")) if isinstance(settings, dict) else ({}, {})
    return "ctd" if "vlm" not in model else "prefer" if "beta" in model or "pairs" in data else "lma"


def config_file(name: str, kind: str) -> Path:
    """The file that `--config` means: a file, or else the configuration of that name.

    Args:
        name: a path, or a name with its kind ("ctd/toy") or without it ("toy").
        kind: of the run: "ctd", "lma" or "lma/stages"; empty where any kind will do, and the name must have its kind.
            To a kind belong its ablations, "ablations/attn" or "ctd/ablations/attn".

    Raises:
        ValueError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    prefix = f"{kind}/" if kind else ""
    folders = (kind, f"{kind}/ablations")
    known = {key: path for key, path in packaged_configs().items() if not kind or key.rpartition("/")[0] in folders}
    path = known.get(prefix + name.removeprefix(prefix))
    if path is None:
        names = ", ".join(key.removeprefix(prefix) for key in known)
        raise ValueError(f"--config {name}: no such file, and none of the configurations that come along ({names})")
    return path


def with_config_files(arguments: Sequence[str], kind: str) -> list[str]:
    """The words of a command line with names after `--config` replaced by files.

    Raises:
        ValueError: a name is none, or a file is no YAML or has a key twice, of which the run would pass over the first.
    """
    words = list(arguments)
    for index, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config" and equals:
            words[index] = f"--config={_checked(config_file(value, kind))}"
        elif index and words[index - 1] == "--config":
            words[index] = str(_checked(config_file(word, kind)))
    return words


def _checked(path: Path) -> Path:
    read_yaml(path)
    return path
