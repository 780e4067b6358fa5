"""The package says what the tree holds, and its top-level names do not break other packages."""

import configparser
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from worlds import ROOT


def test_every_package_is_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = set()
    for root, name in (
        (ROOT, "liteframe"),
        (ROOT / "kernels", "liteframe_kernels"),
        (ROOT / "export", "liteframe_export"),
        (ROOT / "export", "liteframe_serving"),
    ):
        found |= {".".join(p.parent.relative_to(root).parts) for p in (root / name).rglob("__init__.py")}
    assert listed - {"liteframe.configs"} == found


def test_every_requirement_is_pinned_within_its_range():
    """`make constraints` has been run since setup.cfg last changed; one version of each, from no private place."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["dev"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier) for pin in pins}
    assert len(pinned) == len(pins)
    assert not [pin for pin in pins if pin.url or not str(pin.specifier).startswith("==")]
    assert [line for line in lines if line.startswith("#")][1:] == ["#    make constraints"]
    for requirement in (Requirement(line) for line in wanted.split("\n") if line):
        version = pinned[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(version), requirement


def test_transformers_does_not_pick_up_our_kernels_folder(tmp_path):
    """From the repository root, also where the Hub's `kernels` package is installed (stood in for by a module)."""
    (tmp_path / "kernels.py").write_text("from_the_hub = True\ndef get_kernel(*args, **kwargs): raise OSError\n")
    code = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "import transformers, transformers.modeling_utils\n"
        "import kernels; print(getattr(kernels, 'from_the_hub', None))\n"
        "import liteframe, liteframe_kernels; print(liteframe_kernels.temporal_conv.__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "temporal_conv"]


def test_importing_liteframe_imports_no_torch():
    code = "import sys, liteframe, liteframe.cli.main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_command_line_helps_and_refuses(capsys):
    import pytest

    from liteframe.cli.main import COMMANDS, main

    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert command in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["unknown"])
    assert stop.value.code == 2
    assert main(["eval", "missing.jsonl", "--vlm", "nowhere", "-o", "nowhere"]) == 2
    assert "missing.jsonl" in capsys.readouterr().err
