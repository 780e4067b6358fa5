"""Video LLMs of two Qwen-VL families: LoRA on the language half alone, merged, exported, and computed with elsewhere.

One process without liteframe reads both exports; the whole road of Qwen3.5 is in test_two_families.py.
"""

import sys

import torch
from liteframe_export import reload_child
from liteframe_export.hf_vlm import save_vlm
from liteframe_export.verify import noise_videos
from safetensors.torch import load_file, save_file
from worlds import forked
from worlds.exports import FAMILIES
from worlds.students import make_student, student_config

from liteframe.align.lora import LoraSettings, adapted_layers, add_lora
from liteframe.models.vlm.adapter import merge_adapter
from liteframe.models.vlm.load import load_video_llm

KINDS = ("qwen2_5_vl", "qwen3_vl")
QUESTIONS = ["What happens ?", "Which circle moves first ?"]
# transformers' own way: nothing but `video_metadata` is told of times, and here not even that.
STRANGER = """
import sys
sys.path.insert(0, sys.argv[1])
import reload_child
reload_child.block_liteframe()
from safetensors.torch import load_file, save_file
root, questions = sys.argv[2], sys.argv[3].split("|")
videos = load_file(f"{root}/videos.safetensors")
for kind in sys.argv[4:]:
    frames = [videos[name].numpy() for name in sorted(videos)]
    found = reload_child.run_vlm(f"{root}/{kind}/exported", frames, questions, 4)
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{root}/{kind}.safetensors")
"""


def test_aligned_models_compute_the_same_without_liteframe(tmp_path):
    videos, expected = noise_videos([2, 11], 64), {}
    for kind in KINDS:
        make, demands = FAMILIES[kind]
        vlm = make(tmp_path / kind / "vlm")
        model, processor = load_video_llm(vlm, encoder=make_student(student_config(**demands), seed=1))
        plain = model.model.language_model.layers[0].mlp.up_proj.weight.clone()
        adapted = add_lora(model, LoraSettings(rank=2))
        assert len(adapted_layers(adapted)) == 2 * 7
        torch.manual_seed(2)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model = merge_adapter(adapted.eval())
        assert (model.model.language_model.layers[0].mlp.up_proj.weight - plain).abs().max() > 1e-3
        expected[kind] = reload_child.ask(model, processor, [video.numpy() for video in videos], QUESTIONS, 4)
        (tmp_path / kind / "exported").mkdir()
        save_vlm(model, processor, tmp_path / kind / "exported")
    save_file({f"{number}": video for number, video in enumerate(videos)}, tmp_path / "videos.safetensors")
    code = [sys.executable, "-P", "-c", STRANGER, str(reload_child.__file__.rpartition("/")[0])]
    done = forked.run([*code, tmp_path, "|".join(QUESTIONS), *KINDS], level="libraries", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        found = load_file(tmp_path / f"{kind}.safetensors")
        for name in ("input_ids", "position_ids", "video_frames", "answers"):
            assert torch.equal(found[name], expected[kind][name]), (kind, name)
        assert expected[kind]["position_ids"].shape[0] == 3
        assert (found["logits"] - expected[kind]["logits"]).abs().max() <= 1e-4
        assert expected[kind]["logits"].std() > 0.1
