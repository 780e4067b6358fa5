"""Random Video LLMs of two families: distilled, aligned, merged, exported, reloaded, asked; InternVL is the demo's.

Both see frames in their own aspect ratio, of videos of three shapes.
"""

import json
import sys

import pytest
import torch
from worlds.ctd import write_ctd_config, write_video
from worlds.vlms import answer_about, make_llava_onevision, make_qwen3_5

import train_ctd
import train_lma
from liteframe.cli.main import main
from liteframe.data.video.process import DecodeProcess
from liteframe.models.vlm.adapter import load_adapter, merge_adapter
from liteframe.models.vlm.chat import question_prompt
from liteframe.models.vlm.load import load_video_llm

# family -> maker, frame size of the student, width of the teacher, image tokens of a slot and of a whole video, and
# shapes of videos
FAMILIES = {
    "llava_onevision": (make_llava_onevision, 80, 32, 3 * 7, 1, [(36, 86), (96, 54), 64]),
    # what is its own: pairs of frames, positions on three axes, times as text
    "qwen3_5": (make_qwen3_5, 64, 32, 3, 0, [(36, 86), (96, 54), 64]),
}
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


@pytest.mark.usefixtures("reload_in_forks")
@pytest.mark.parametrize("family", FAMILIES)
def test_distil_align_merge_export_reload_ask(family, tmp_path, monkeypatch, capsys):
    make, size, dim, per_slot, per_video, shapes = FAMILIES[family]
    vlm = make(tmp_path / "vlm")
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(3):
        write_video(videos / f"{number}.mp4", frames=20, fps=8, size=shapes[number], seed=number)
    rows = [
        {
            "video": f"videos/{i}.mp4",
            "conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": w}],
        }
        for i, w in enumerate(("left", "right", "up"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = tmp_path / "ctd" / "encoder"
    write_ctd_config(
        tmp_path / "ctd.yaml",
        vlm,
        videos,
        run=tmp_path / "ctd",
        model={
            "student": {"image_size": size, "teacher_dim": dim, "resize": "aspect"},
            "target": {"statistics_clips": 2},
            "optimizer": {"lr": 1e-2, "warmup_steps": 0},
        },
        data={"val_fraction": 0},
        trainer={"max_steps": 2},
    )
    lma = LMA.format(run=tmp_path / "lma", vlm=vlm, encoder=encoder, rows=tmp_path / "rows.jsonl")
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
