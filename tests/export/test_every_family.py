"""A random Video LLM of each family: distilled, aligned, merged, exported, reloaded without LiteFrame, asked.

InternVL goes this road in tests/demo/test_demo.py.

All see frames in their own aspect ratio, of videos of three shapes; Qwen3-VL learns deepstack, too. What servers make
of exports of each family is in test_vllm_plugin.py, as far as that goes without a server, and in the scripts
vllm_check.py and sglang_check.py.
"""

import json
import sys

import pytest
import torch
from worlds.ctd import write_ctd_config, write_video
from worlds.exports import FAMILIES
from worlds.vlms import answer_about, make_llava_onevision

import train_ctd
import train_lma
from liteframe.cli.main import main
from liteframe.data.video.process import DecodeProcess
from liteframe.models.vlm.adapter import load_adapter, merge_adapter
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

# Image tokens of a slot, and what ends a video: frames of 36 x 86 are seen at 32 x 96, with LLaVA's tower at 48 x 112.
COUNTS = {"llava_onevision": (3 * 7, 1)}
SHAPES = [(36, 86), (96, 54), 64]
LMA = """
seed_everything: 3
run: {run}
model:
  vlm: "{vlm}"
  encoder: "{encoder}"
  lora: {{rank: 2, alpha: 4, dropout: 0.0}}
  optimizer: {{lr: 1.0e-2, warmup_steps: 0}}
data: {{conversations: "{rows}", frames: [10], fps: [8.0, 8.0], batch_size: 2, micro_batch_size: 2, workers: 0}}
trainer: {{max_steps: 2, accelerator: cpu}}
"""
QUESTION = "Which way does the red circle move?"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of three, beside the rows of a conversation about each."""
    folder = tmp_path_factory.mktemp("films") / "videos"
    folder.mkdir()
    rows = []
    for number, (size, word) in enumerate(zip(SHAPES, ("left", "right", "up"), strict=True)):
        write_video(folder / f"{number}.mp4", frames=20, fps=8, size=size, seed=number)
        said = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": word}]
        rows.append(json.dumps({"video": f"videos/{number}.mp4", "conversations": said}) + "\n")
    (folder.parent / "rows.jsonl").write_text("".join(rows))
    return folder


@pytest.mark.usefixtures("reload_in_forks")
@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"internvl"}))
def test_distil_align_merge_export_reload_ask(family, videos, tmp_path, monkeypatch, capsys):
    make, demands = FAMILIES[family]
    per_slot, per_video = COUNTS.get(family, (3, 0))
    vlm = make(tmp_path / "vlm")
    encoder = tmp_path / "ctd" / "encoder"
    deepstack = family == "qwen3_vl"  # one inner block, whose features its language model reads, too
    write_ctd_config(
        tmp_path / "ctd.yaml",
        vlm,
        videos,
        run=tmp_path / "ctd",
        model={
            "teacher": {"deepstack": deepstack},
            "student": {
                "image_size": demands["image_size"],
                "teacher_dim": demands["teacher_dim"] * (1 + deepstack),
                "resize": "aspect",
            },
            "target": {"statistics_clips": 2},
            "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        },
        data={"val_fraction": 0},
        trainer={"max_steps": 2},
    )
    lma = LMA.format(run=tmp_path / "lma", vlm=vlm, encoder=encoder, rows=videos.parent / "rows.jsonl")
    (tmp_path / "lma.yaml").write_text(lma)
    for module, name in ((train_ctd, "ctd"), (train_lma, "lma")):
        monkeypatch.setattr(sys, "argv", [f"train_{name}.py", "fit", "--config", str(tmp_path / f"{name}.yaml")])
        module.main()
    assert main(["export", "hf-vlm", str(tmp_path / "lma"), str(tmp_path / "exported")]) == 0
    parity = json.loads((tmp_path / "exported" / "parity.json").read_text())
    assert parity["max_abs_difference"] <= 1e-4
    assert parity["cases"][0]["largest_logit"] > 0.1

    # Trained parts, put together here by PEFT, against the exported folder.
    model, processor = load_video_llm(vlm, encoder=encoder)
    before = model.lm_head.weight.clone(), model.model.language_model.layers[0].mlp.up_proj.weight.clone()
    adapted = load_adapter(model, tmp_path / "lma" / "adapter").eval()
    with DecodeProcess() as decoder:
        frames = decoder.read(videos / "0.mp4", list(range(10)))
    inputs = processor(text=question_prompt(QUESTION), videos=[frames])
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 3 * per_slot + per_video
    with torch.inference_mode():
        expected = adapted(**inputs).logits
    exported, its_processor = load_video_llm(tmp_path / "exported")
    its_inputs = its_processor(text=question_prompt(QUESTION), videos=[frames])
    with torch.inference_mode():
        found = exported(**its_inputs).logits
    assert torch.equal(inputs["input_ids"], its_inputs["input_ids"])
    assert (found - expected).abs().max() <= 1e-4
    assert (merge_adapter(adapted).model.language_model.layers[0].mlp.up_proj.weight - before[1]).abs().max() > 1e-4
    assert torch.equal(exported.lm_head.weight, before[0])

    capsys.readouterr()
    argv = ["ask", str(videos / "0.mp4"), QUESTION, "--frames", "20", "--max-new-tokens", "4"]
    assert main([*argv, "--vlm", str(tmp_path / "exported")]) == 0
    with DecodeProcess() as decoder:
        frames = decoder.read(videos / "0.mp4", list(range(20)))
    assert capsys.readouterr().out.strip() == answer_about(
        exported, its_processor, frames, QUESTION, times=[i / 8 for i in range(20)], max_new_tokens=4
    )


def test_plain_llava_onevision_answers_as_transformers_does(tmp_path):
    vlm = make_llava_onevision(tmp_path / "vlm")
    model, processor = load_video_llm(vlm)
    video = torch.randint(0, 256, (5, 50, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = processor(text=question_prompt(QUESTION), videos=[video.permute(0, 3, 1, 2)], return_tensors="pt")
    ids = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    )
    expected = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert answer_about(model, processor, video.numpy(), QUESTION, max_new_tokens=6) == expected
