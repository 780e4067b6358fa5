"""The SGLang plug-in, as far as it can be tested without SGLang; sglang_check.py tests the rest where SGLang is."""

import configparser
import json
import re
import subprocess
import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from liteframe_serving.prompts import runs
from liteframe_serving.served import ServedVision, served_classes
from liteframe_serving.sglang import ARCHITECTURES
from worlds import ROOT

from liteframe.models.vlm.family import FAMILIES
from liteframe.models.vlm.internvl import LiteFrameInternVLConfig, pixel_shuffle
from liteframe.models.vlm.load import load_video_llm

PLUGIN = ROOT / "export" / "liteframe_serving" / "sglang"
GUIDE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")


def test_entry_point_and_lazy_import():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    entry = config["options.entry_points"]["sglang.srt.plugins"].strip()
    assert entry == "liteframe = liteframe_serving.sglang:register"
    (found,) = entry_points(group="sglang.srt.plugins", name="liteframe")
    assert found.value == "liteframe_serving.sglang:register"
    assert callable(found.load())
    code = "import sys, liteframe_serving.sglang; print(sorted({'sglang', 'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_class_of_each_family_is_served(exported_vlm):
    (architecture,) = json.loads((exported_vlm / "config.json").read_text())["architectures"]
    assert architecture in ARCHITECTURES

    class Base(ServedVision, torch.nn.Module):
        pass

    served = served_classes(Base, __name__)
    assert tuple(served) == ARCHITECTURES == tuple(family.generation_class.__name__ for family in FAMILIES.values())
    config = LiteFrameInternVLConfig.from_pretrained(exported_vlm)
    model = served[architecture]()
    model.add_vision(config)
    assert set(dict(model.named_children())) == {"vision_tower", "multi_modal_projector"}
    model.config, grid = config, torch.arange(64.0).reshape(1, 4, 4, 4)
    assert torch.equal(model.merge_patches(grid), pixel_shuffle(grid, 2))
    assert model.end_embedding() is None


def test_only_one_module_has_entry_classes():
    """SGLang reads EntryClass of every module, imported names too, and refuses a class that it meets twice."""
    having = [path.stem for path in sorted(PLUGIN.glob("*.py")) if re.search(r"\bEntryClass\b", path.read_text())]
    assert having == ["model"]


@pytest.mark.parametrize("frames", [1, 4, 23])
def test_runs_are_the_lines_of_the_slots(exported_vlm, frames):
    _, processor = load_video_llm(exported_vlm)
    video = np.zeros((frames, 64, 64, 3), np.uint8)
    ids = processor(text="<IMG_CONTEXT>\n<video>\nWhich?", images=[video[0]], videos=[video])["input_ids"][0].tolist()
    per_slot = processor.tokens_per_slot(*processor.frame_size)
    slots = -(-frames // processor.frames_per_slot)
    image, of_video = runs(ids, processor.image_token_id, [per_slot, slots * per_slot])
    assert [last - first + 1 for first, last in image + of_video] == [per_slot] * (1 + slots)
    start, end = (processor.tokenizer.convert_tokens_to_ids(t) for t in ("<img>", "</img>"))
    assert all(ids[first - 1] == start and ids[last + 1] == end for first, last in image + of_video)


def test_items_that_touch_are_told_apart():
    assert runs([9, 9, 9, 1, 9], 9, [2, 2]) == [[(0, 1)], [(2, 2), (4, 4)]]
    with pytest.raises(ValueError, match=r"holds 4 image tokens.* take 5"):
        runs([9, 9, 9, 1, 9], 9, [5])


def test_the_guide_names_what_the_plugin_reads():
    """The option of the guide's command is the one that processing.py looks up, and its number the default."""
    section = GUIDE.split("## SGLang")[1]
    (option,) = re.findall(r"--mm-process-config '([^']+)'", section)
    (kind,) = json.loads(option)
    (name,) = json.loads(option)[kind]
    source = (PLUGIN / "processing.py").read_text(encoding="utf-8")
    assert f'self.{kind}_config.get("{name}", NUM_FRAMES)' in source
    (default,) = re.findall(r"^NUM_FRAMES = (\d+)$", source, re.MULTILINE)
    assert f"`{name}` is {default} unless you say so" in section
    for script in re.findall(r"tests/export/\w+\.py", section):
        assert (ROOT / script).is_file()
