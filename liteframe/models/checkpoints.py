"""What a checkpoint's name means, and which weight files of a checkpoint are read."""

import os
from pathlib import Path, PurePath
from typing import Any

from liteframe.texts import read_json

INDEX = "model.safetensors.index.json"
# Checkpoints that come with LiteFrame: the tiny InternVL of toyworld.
SHIPPED = {"toyworld": str(Path(__file__).resolve().parents[1] / "toyworld" / "checkpoint")}


def checkpoint_source(name: Any) -> str:
    """What transformers loads for a name: a shipped checkpoint's folder; else the folder or Hugging Face id itself."""
    name = os.fspath(name)
    return name if os.path.isdir(name) else SHIPPED.get(name, name)


def check_weight_index(source: Any) -> None:
    """Refuse a local checkpoint whose index names anything but safetensors files of its own folder.

    transformers joins the names to the folder as they are; files of a hub id lie in its cache, under the cache's names.

    Raises:
        ValueError: the index is damaged, or names another place or another format.
    """
    path = Path(os.fspath(source)) / INDEX
    if not path.is_file():
        return
    try:
        names = read_json(path)["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); copy or download the checkpoint again") from error
    for name in names:
        plain = isinstance(name, str) and name == PurePath(name).name and "\\" not in name and "\0" not in name
        if not plain or not name.endswith(".safetensors"):
            raise ValueError(
                f"{path} names {name!r}; only safetensors files of the same folder are read. "
                "Do not trust this checkpoint"
            )
