"""Files of an export. It appears whole or not at all: made beside its place, verified there, then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


@contextmanager
def staged(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `out`; it becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        ValueError: `out` exists, or its parent is not a folder.
    """
    place = Path(os.path.abspath(out))
    if place.exists() or place.is_symlink():
        raise ValueError(f"{out} exists; name a new folder, or remove that one first")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{out} cannot be made: {place.parent} is not a folder") from error
    folder = place.with_name(f"{place.name}.partial-{os.getpid()}")
    folder.mkdir()
    try:
        write_licence(folder)
        yield folder
        readable = folder.stat().st_mode & 0o666  # safetensors makes its files readable to their owner only
        for file in folder.iterdir():
            file.chmod(readable)
        folder.rename(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_licence(folder: Path) -> None:
    """Write the licence of the code in an export. What may be done with the weights, its card says.

    Raises:
        ValueError: liteframe was installed without its licence.
    """
    # An editable install has an egg-info folder as well, which holds no licence and may be found first.
    texts = (found.read_text("licenses/LICENSE") for found in distributions(name="liteframe"))
    text = next(filter(None, texts), None)
    if text is None:
        raise ValueError("the installed liteframe lacks its LICENSE file; install it again with pip")
    (folder / "LICENSE").write_text(text, encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def add_auto_map(path: Path, auto_map: dict[str, str]) -> None:
    """Name the classes of the exported code in a config file of the export."""
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "auto_map": auto_map})
