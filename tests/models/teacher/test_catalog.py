"""Every teacher of docs/teachers.md: its patches lie where their pixels do, and the table says what the code does."""

import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from liteframe.cli.main import main
from liteframe.models.teacher import catalog
from liteframe.models.teacher.catalog import entries, tower_flops
from liteframe.models.teacher.hf_vit import VIT_CLASSES
from liteframe.models.teacher.huggingface import WHOLE_MODELS
from liteframe.models.teacher.licenses import FREE, consequence, warning
from liteframe.models.teacher.timm_vit import KINDS
from liteframe.models.vlm.family import FAMILIES

DOCS = Path(__file__).parents[3] / "docs" / "teachers.md"
ENTRIES = {f"{entry.name} ({entry.loads[0]})": entry for entry in entries()}
NOT_THE_BLOCKS = re.compile(r"\.(merger|deepstack_merger_list\.\d+|downsample|head|pooler|rotary_emb)$")


@cache
def tiny(name):
    return ENTRIES[name].make(True).eval()


@pytest.mark.parametrize("name", ENTRIES)
@torch.no_grad()
def test_flops_are_what_torch_counts_in_a_forward(name):
    tower = tiny(name)
    tower.weigh_by("mean")
    p, frames = tower.patch_size, tower.temporal_patch
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # or its attention is not counted
        tower(torch.zeros(1, frames, 3, 8 * p, 16 * p))
    tower.weigh_by(tower.saliencies[0])
    counted = {module: sum(by.values()) for module, by in counter.get_flop_counts().items()}
    left_out = sum(flops for module, flops in counted.items() if NOT_THE_BLOCKS.search(module))
    if "gemma4_vit" in name:  # it looks positions up by a product with rows of one 1
        left_out += counted["TimmTower.model.patch_embed"] - counted["TimmTower.model.patch_embed.input_proj"]
    assert tower_flops(tower, (8, 16)) * frames == counted["Global"] - left_out


@pytest.mark.parametrize("name", ENTRIES)
@torch.no_grad()
def test_a_patch_of_pixels_changes_its_own_features_most(name, make):
    tower = tiny(name)
    make.scramble(tower)
    p, m, frames = tower.patch_size, tower.merge, tower.temporal_patch
    torch.manual_seed(0)
    video = torch.randn(1, 2 * frames, 3, 3 * m * p, 5 * m * p)
    features = tower(video)
    for row, column in ((0, 3), (2, 1)):
        changed = video.clone()
        changed[0, -1, :, row * p : (row + 1) * p, column * p : (column + 1) * p] *= -1
        other = tower(changed)
        change = (other.patches - features.patches)[0].norm(dim=-1)  # [T,h,w]
        assert change[0].max() == 0  # frames, or pairs of them, do not see each other
        assert divmod(int(change[1].argmax()), 5 * m) == (row, column)
        if features.logits is not None:
            assert torch.equal(other.logits[0, 0], features.logits[0, 0])
            assert not torch.equal(other.logits[0, 1], features.logits[0, 1])


def test_the_table_is_what_the_code_gives(capsys):
    assert main(["info", "--teachers"]) == 0
    table = capsys.readouterr().out
    _, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- teachers -->\n")
    written, _, _ = rest.partition("<!-- /teachers -->")
    assert written == table, "write the output of `liteframe info --teachers` between the markers of docs/teachers.md"


def test_what_an_older_library_lacks_is_said(monkeypatch):
    lacking = catalog.Entry("Newer", ("newer",), None, catalog._hf("NewerConfig"))
    monkeypatch.setattr(catalog, "entries", lambda: (lacking,))
    assert catalog.table()[2].startswith("| Newer | `newer` | not in transformers 5.")


def test_the_table_has_every_kind():
    loads = {name for entry in ENTRIES.values() for name in entry.loads}
    assert {*VIT_CLASSES, *WHOLE_MODELS, *FAMILIES} == {name for name in loads if not name.startswith("timm/")}
    modules = {timm.model_entrypoint(name[5:]).__module__.rsplit(".", 1)[-1] for name in loads if "timm/" in name}
    assert set(KINDS) <= modules


def test_what_licenses_mean_for_a_student():
    assert consequence("apache-2.0") == FREE
    assert warning("mit") is None
    assert warning(None) is None
    for license in ("cc-by-nc-4.0", "fair-noncommercial-research-license", "CC-BY-NC-SA-4.0"):
        assert "no commercial use" in warning(license)
    assert "bind the student" in warning("dinov3-license")
    assert "read it" in warning("other")
