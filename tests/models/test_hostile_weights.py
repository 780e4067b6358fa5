"""Checkpoints from strangers: nothing is unpickled, no code is run, no file outside the folder is read."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from worlds.ctd import make_vlm_folder
from worlds.students import student_config

from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm.load import load_video_llm


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def encoder(tmp_path):
    LiteFrameEncoder(student_config(dim=16, depth=2, teacher_dim=8)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def vlm(tmp_path):
    return make_vlm_folder(tmp_path / "vlm")


def loaders(folder):
    return [lambda: load_teacher(folder), lambda: load_video_llm(folder)]


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "pytorch_model.bin"])
def test_pickled_encoder_weights_are_not_opened(encoder, tmp_path, name):
    (encoder / "model.safetensors").unlink()
    torch.save({"head.bias": Trap(tmp_path / "sprung")}, encoder / name)
    with pytest.raises((ValueError, FileNotFoundError), match=r"model\.safetensors"):
        LiteFrameEncoder.from_pretrained(encoder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickled_checkpoints_are_not_opened(vlm, tmp_path, name):
    (vlm / "model.safetensors").unlink()
    torch.save({"x": Trap(tmp_path / "sprung")}, vlm / name)
    for load in loaders(vlm):
        with pytest.raises((ValueError, OSError)):
            load()
    assert not (tmp_path / "sprung").exists()


def rewrite_header(path, change):
    """Put another header before the same bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def shift(header):
    """The first tensor starts before the file's bytes."""
    first = next(name for name in header if name != "__metadata__")
    begin, end = header[first]["data_offsets"]
    header[first]["data_offsets"] = [begin + (1 << 40), end + (1 << 40)]
    return header


def overlap(header):
    """Two tensors share their bytes."""
    first, second, *_ = (name for name in header if name != "__metadata__")
    header[first] = dict(header[second])
    return header


@pytest.mark.parametrize(
    "change",
    [shift, overlap, lambda header: b"{" * 200, lambda header: b"not json", lambda header: {}],
    ids=["offsets", "overlap", "nested", "text", "empty"],
)
def test_tampered_headers_are_refused(encoder, vlm, change):
    rewrite_header(encoder / "model.safetensors", change)
    with pytest.raises(ValueError, match=r"model\.safetensors|missing"):
        LiteFrameEncoder.from_pretrained(encoder)
    rewrite_header(vlm / "model.safetensors", change)
    for load in loaders(vlm):
        with pytest.raises(ValueError, match="weights"):
            load()


def test_a_header_longer_than_its_file_is_refused(encoder):
    path = encoder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        LiteFrameEncoder.from_pretrained(encoder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/{place}/outside.safetensors", "sub/x.safetensors",
                                  "..", "outside.bin", "a\0.safetensors", 3])  # fmt: skip
def test_an_index_names_files_of_its_own_folder(vlm, tmp_path, name):
    weights = load_file(vlm / "model.safetensors")
    save_file(weights, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    (vlm / "model.safetensors").unlink()
    name = name.format(place=tmp_path) if isinstance(name, str) else name
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (vlm / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in loaders(vlm):
        with pytest.raises(ValueError, match="only safetensors files of the same folder"):
            load()


def test_an_index_of_its_own_shards_is_read(vlm):
    (vlm / "model.safetensors").rename(vlm / "model-00001-of-00001.safetensors")
    weights = load_file(vlm / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (vlm / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_teacher(vlm).dim == 32
    (vlm / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(ValueError, match="is damaged"):
        load_teacher(vlm)


def test_code_in_a_checkpoint_is_not_run(vlm, tmp_path):
    (vlm / "trap.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    config = {"model_type": "trap", "auto_map": {"AutoConfig": "trap.Trap", "AutoModel": "trap.Trap"}}
    (vlm / "config.json").write_text(json.dumps(config))
    for load in loaders(vlm):
        with pytest.raises(ValueError, match=r"trap|trust_remote_code"):
            load()
    assert not (tmp_path / "sprung").exists()
