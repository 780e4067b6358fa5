"""A Qwen3-VL with deepstack: LoRA merged, exported, and computed with where liteframe is not installed."""

import sys

import torch
from liteframe_export import reload_child
from liteframe_export.hf_vlm import save_vlm
from liteframe_export.verify import noise_videos
from safetensors.torch import load_file, save_file
from worlds import forked
from worlds.exports import FAMILIES
from worlds.students import make_student, student_config

from liteframe.align.lora import LoraSettings, add_lora
from liteframe.models.vlm.adapter import merge_adapter
from liteframe.models.vlm.load import load_video_llm

QUESTIONS = ["What happens ?", "Which circle moves first ?"]
STRANGER = """
import sys
sys.path.insert(0, sys.argv[1])
import reload_child
reload_child.block_liteframe()
from safetensors.torch import load_file, save_file
root, questions = sys.argv[2], sys.argv[3].split("|")
videos = load_file(f"{root}/videos.safetensors")
found = reload_child.run_vlm(f"{root}/exported", [videos[name].numpy() for name in sorted(videos)], questions, 4)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, f"{root}/found.safetensors")
"""


def test_an_aligned_model_computes_the_same_without_liteframe(tmp_path):
    make, demands = FAMILIES["qwen3_vl"]
    encoder = make_student(student_config(**{**demands, "teacher_dim": 64, "deepstack": 1}), seed=1)
    model, processor = load_video_llm(make(tmp_path / "vlm"), encoder=encoder)
    adapted = add_lora(model, LoraSettings(rank=2))
    torch.manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    model, videos = merge_adapter(adapted.eval()), noise_videos([2, 11], 64)
    expected = reload_child.ask(model, processor, [video.numpy() for video in videos], QUESTIONS, 4)
    (tmp_path / "exported").mkdir()
    save_vlm(model, processor, tmp_path / "exported")
    save_file({f"{number}": video for number, video in enumerate(videos)}, tmp_path / "videos.safetensors")
    code = [sys.executable, "-P", "-c", STRANGER, str(reload_child.__file__.rpartition("/")[0])]
    done = forked.run([*code, tmp_path, "|".join(QUESTIONS)], level="libraries", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    for name in ("input_ids", "position_ids", "answers"):
        assert torch.equal(found[name], expected[name]), name
    assert (found["logits"] - expected["logits"]).abs().max() <= 1e-4
    assert expected["logits"].std() > 0.1
