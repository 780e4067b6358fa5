import importlib
import inspect
import re

import pytest
import torch
from liteframe_export import bundle as bundling
from liteframe_export.bundle import bundle, flatten
from transformers.dynamic_module_utils import get_imports

from liteframe.models.student.encoder import Block, LiteFrameEncoder
from liteframe.models.student.mixers import StridedConv
from liteframe.models.vlm.internvl import (
    LiteFrameInternVLForConditionalGeneration,
    LiteFrameInternVLModel,
    LiteFrameInternVLProcessor,
)

MODULE = "liteframe.models.made_up"


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Lets a test say what the source of a liteframe module is."""
    known = {}

    def place(module):
        if module not in known:
            return original(module)
        path = tmp_path / f"{module}.py"
        path.write_text(known[module])
        return path

    original = bundling._source_file
    monkeypatch.setattr(bundling, "_source_file", place)
    return known


def test_the_exported_code_is_the_code_of_the_library(tmp_path):
    names = bundle(["liteframe.models.vlm.internvl", "liteframe.models.vlm.processor"], tmp_path)
    texts = {name: (tmp_path / name).read_text() for name in names}
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    everything = "\n".join(texts.values())
    for part in (LiteFrameEncoder, Block, StridedConv, LiteFrameInternVLModel, LiteFrameInternVLProcessor):
        assert inspect.getsource(part) in everything
    assert inspect.getsource(LiteFrameInternVLForConditionalGeneration).rstrip() in everything
    for name, text in texts.items():
        assert not re.search(r"^\s*(from|import)\s+liteframe", text, flags=re.MULTILINE), name
        assert not re.search(r"^Auto\w+\.register", text, flags=re.MULTILINE), name
        assert not {"triton", "peft", "lightning", "timm", "av", "decord"} & set(get_imports(tmp_path / name)), name
        for needed in re.findall(r"^\s*from \.(\w+) import", text, flags=re.MULTILINE):
            assert f"{needed}.py" in texts


def test_kernels_travel_and_meet_nobody(tmp_path, monkeypatch):
    """Two exports and the library in one process: each has operations of its own, which compute the same."""
    from liteframe_kernels import temporal_conv

    x, weight, bias = torch.randn(1, 4, 3, 8), torch.randn(8, 3), torch.randn(8)
    expected = temporal_conv(x, weight, bias, residual=True)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first_export", "second_export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        names = bundle(["liteframe.models.student.encoder"], tmp_path / name)
        assert {"temporal_conv_triton.py", "strided_conv_triton.py", "launch.py", "backend.py"} <= set(names)
        exported = importlib.import_module(f"{name}.temporal_conv_op")
        assert exported.temporal_conv_op._qualname == f"{name}::temporal_conv"
        assert torch.equal(exported.temporal_conv(x, weight, bias, residual=True), expected)
        pytest.importorskip("triton")
        assert callable(importlib.import_module(f"{name}.temporal_conv_triton").forward)
    assert torch.ops.liteframe_kernels.temporal_conv.default is not None


def test_each_form_of_import_is_rewritten_in_its_place(sources):
    sources[MODULE] = (
        "from liteframe.models.student.encoder import (\n    LiteFrameEncoder,\n    LiteFrameConfig as Config,\n)\n"
        "from .student.mixers import StridedConv\nimport torch\n\n\n"
        "def late():\n    from liteframe_kernels import temporal_conv as conv\n    return conv\n\n\n"
        "AutoModel.register(\n    Config,\n    LiteFrameEncoder,\n)\n"
    )
    text, needed = flatten(MODULE)
    assert text.splitlines()[1:] == [
        "from .student_encoder import LiteFrameEncoder, LiteFrameConfig as Config",
        "from .student_mixers import StridedConv",
        "import torch",
        "",
        "",
        "def late():",
        "    from .temporal_conv_op import temporal_conv as conv",
        "    return conv",
    ]
    assert sorted(needed) == [
        "liteframe.models.student.encoder",
        "liteframe.models.student.mixers",
        "liteframe_kernels.temporal_conv.op",
    ]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import liteframe.models.student.encoder\n", "write `from"),
        ("from liteframe.models import student\n", "names a package"),
        ("from . import student\n", "names a package"),
        ("from liteframe_kernels import no_such_kernel\n", "has no function no_such_kernel"),
        ("from liteframe.models.no_such_file import x\n", "there is no module"),
        ("import importlib\nimportlib.import_module('liteframe.models.student.encoder')\n", "would still need"),
    ],
)
def test_an_import_that_an_export_cannot_have_is_an_error(sources, source, complaint):
    sources[MODULE] = source
    with pytest.raises(ValueError, match=complaint):
        flatten(MODULE)


def test_two_files_of_one_name_are_an_error(sources, tmp_path):
    sources[MODULE] = "from liteframe.models.vlm.made_up import x\n"
    sources["liteframe.models.vlm.made_up"] = "x = 1\n"
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"two modules .* made_up\.py"):
        bundle([MODULE], tmp_path / "out")


def test_modules_that_import_each_other_are_copied_once(sources, tmp_path):
    sources[MODULE] = "from liteframe.models.vlm.other import x\n"
    sources["liteframe.models.vlm.other"] = "from liteframe.models.made_up import y\n"
    (tmp_path / "out").mkdir()
    assert bundle([MODULE], tmp_path / "out") == ["made_up.py", "other.py"]
