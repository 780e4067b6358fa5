"""Files of an export. It appears whole or not at all: made beside its place, verified there, then renamed."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from liteframe.files import check_output, write_json
from liteframe.texts import read_json


@contextmanager
def staged(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder beside `out`; it becomes `out` when the block ends well and vanishes when it does not.

    Raises:
        ValueError: `out` exists, or nothing can be written beside it.
    """
    place = check_new(out)
    remove_left_behind(place)
    folder = place.with_name(f"{place.name}.partial-{os.getpid()}")
    folder.mkdir()
    mark = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX)
        write_license(folder)
        yield folder
        readable = folder.stat().st_mode & 0o666  # safetensors makes its files readable to their owner only
        for file in folder.iterdir():
            file.chmod(readable)
        folder.rename(place)
    finally:
        os.close(mark)
        shutil.rmtree(folder, ignore_errors=True)


def check_new(out: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that can be made; its parent is made now. For before and after the work.

    Raises:
        ValueError: `out` exists, or nothing can be written beside it.
    """
    place = Path(os.path.abspath(out))
    if place.exists() or place.is_symlink():
        raise ValueError(f"{out} exists; name a new folder, or remove that one first")
    check_output(place, folder=True)
    return place


def remove_left_behind(place: Path) -> None:
    """Remove what exports to `place` that were killed have left beside it; one that still runs holds a lock."""
    for folder in place.parent.glob(f"{glob.escape(place.name)}.partial-*"):
        mark = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            continue
        finally:
            os.close(mark)


def save_weights(model: Any, folder: Path) -> None:
    """`model.save_pretrained(folder)`.

    Raises:
        OSError: the weights could not be written.
    """
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(f"the weights cannot be written below {folder.parent} ({error}); nothing is kept") from error


def write_license(folder: Path) -> None:
    """Write the license of the code in an export. What may be done with the weights, its card says.

    Raises:
        ValueError: liteframe was installed without its license.
    """
    # An editable install has an egg-info folder as well, which holds no license and may be found first.
    texts = (found.read_text("licenses/LICENSE") for found in distributions(name="liteframe"))
    text = next(filter(None, texts), None)
    if text is None:
        raise ValueError("the installed liteframe lacks its LICENSE file; install it again with pip")
    (folder / "LICENSE").write_text(text, encoding="utf-8")


def add_auto_map(path: Path, auto_map: dict[str, str]) -> None:
    """Name the classes of the exported code in a config file of the export."""
    write_json(path, {**read_json(path), "auto_map": auto_map})
