"""Logit distillation in LMA: the soft loss against a loop, the teacher against transformers' own model, and the run."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from liteframe.align.batch import collate_samples
from liteframe.align.conversation_files import load_conversations
from liteframe.align.dataset import ConversationDataset
from liteframe.align.dense_teacher import DenseTeacher, DistillationSettings
from liteframe.align.lora import LoraSettings, add_lora
from liteframe.align.objectives.distillation import LogitDistillation, divergence
from liteframe.align.objectives.sft import SupervisedFineTuning
from liteframe.models.vlm.attach import with_encoder
from liteframe.models.vlm.chat import encode_conversation
from liteframe.models.vlm.load import load_processor, load_video_llm


def test_the_divergence_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 7, generator=generator, requires_grad=True)
    labels = torch.tensor([[-100, -100, 3, 1, -100], [-100, 2, -100, 4, 5]])
    positions = torch.tensor([0, 1, 2, 3])
    targets = [torch.randn(2, 7, generator=generator).log_softmax(-1), None]
    total, tokens = divergence(logits, labels, positions, targets)
    expected = 0.0
    for place, target in zip((1, 2), targets[0].double(), strict=True):  # before the labels at 2 and 3
        exponents = [math.exp(value) for value in logits[0, place].double().tolist()]
        for value, logit in zip(target.tolist(), exponents, strict=True):
            expected += math.exp(value) * (value - math.log(logit / sum(exponents)))
    assert (total.item(), tokens.item()) == (pytest.approx(expected, rel=1e-6), 2)
    (gradient,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(gradient[0, 1:3], logits[0, 1:3].softmax(-1).detach() - targets[0].exp())
    assert not gradient[1].any()
    with pytest.raises(ValueError, match="2 answer tokens, and its teacher 1"):
        divergence(logits, labels, positions, [targets[0][:1], None])


@pytest.fixture(scope="module")
def taught(lma_world):
    """Model with an adapter that has changed it, its teacher, and a batch of two videos and a text."""
    conversations = load_conversations(lma_world / "rows.jsonl")
    processor = load_processor(lma_world / "vlm", lma_world / "encoder")
    data = ConversationDataset(conversations, processor, budgets=[8], fps=(8.0, 8.0))
    samples = [data[0, index] for index in (0, 2, 3)]
    batch = collate_samples(samples, processor.tokenizer.pad_token_id, processor.image_token_id)
    whole, own = load_video_llm(lma_world / "vlm")
    model = add_lora(with_encoder(whole, lma_world / "encoder"), LoraSettings(dropout=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.05)
    batch = batch._replace(pixels=processor.normalized(batch.pixels), shown=batch.pixels)
    return model, DenseTeacher(whole, own, model, conversations, 5), batch, conversations


def test_the_teacher_is_transformers_own_model_on_dense_frames(lma_world, taught):
    """A second copy of it, without an adapter, by its own forward pass; five of eight frames."""
    model, teacher, batch, conversations = taught
    found = teacher(batch)
    plain, processor = load_video_llm(lma_world / "vlm")
    frames = batch.shown.split(batch.video_frames)
    for number, index in enumerate((0, 2, 3)):
        texts, pixels = [], {}
        if index != 3:
            chosen = frames[number][[0, 1, 3, 4, 6]]
            pixels["pixel_values"] = processor.video_processor(
                videos=[chosen], return_tensors="pt", do_sample_frames=False
            )["pixel_values_videos"][0]
            tokens = processor.image_token * processor.image_seq_length
            lines = [f"Frame{n}: {processor.start_image_token}{tokens}{processor.end_image_token}" for n in range(1, 6)]
            texts = ["\n".join(lines)]
        ids, labels = encode_conversation(conversations[index].turns, texts, processor.tokenizer)
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids]), **pixels).logits[0]
        learned = [place - 1 for place, label in enumerate(labels) if label != -100]
        torch.testing.assert_close(found[number], logits[learned].log_softmax(-1), rtol=1e-4, atol=1e-5)
    assert not any(row.requires_grad for row in found)


def test_its_weight_is_that_of_the_loss(taught):
    """Answer loss and weight times divergence; weight 0 is supervised fine-tuning."""
    model, teacher, batch, _ = taught
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "pixel_values_videos": batch.pixels,
              "video_frames": batch.video_frames, "use_cache": False}  # fmt: skip
    plain, logits = SupervisedFineTuning().loss(model, inputs, batch)
    soft, tokens = divergence(logits, batch.labels, batch.answers, teacher(batch))
    assert soft > 0
    for weight in (0.0, 0.7):
        objective = LogitDistillation(weight, teacher)
        total, _ = objective.loss(model, inputs, batch)
        torch.testing.assert_close(total, plain + weight * soft)
        weights = [p for p in model.parameters() if p.requires_grad]
        figures = objective.normalize(weights, 1, lambda tensor: tensor)
        assert figures["train/distillation_loss"] == pytest.approx(soft.item() / tokens.item(), rel=1e-5)


def test_a_run_learns_from_it_and_without_weight_does_not_load_it(run, lma_world, tmp_path, monkeypatch):
    words = ("fit", "--config", lma_world / "lma.yaml", "--model.distillation.frames", "4")
    run(*words, "--run", tmp_path / "on", "--model.distillation.weight", "2.0")
    monkeypatch.setattr(DenseTeacher, "__init__", None)
    run(*words, "--run", tmp_path / "off", "--model.distillation.weight", "0")
    reports = {name: json.loads((tmp_path / name / "report.json").read_text()) for name in ("on", "off")}
    assert reports["on"]["figures"]["train/distillation_loss"] > 0
    assert "train/distillation_loss" not in reports["off"]["figures"]
    assert reports["on"]["distillation"] == {"weight": 2.0, "frames": 4}
    on, off = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("on", "off"))
    assert on.keys() == off.keys()
    assert any(not torch.equal(on[name], off[name]) for name in on)
    with pytest.raises(ValueError, match=r"the teacher needs frames, which data\.cache_features does without"):
        run(*words, "--run", tmp_path / "no", "--model.distillation.weight", "1", "--data.cache_features", "true")
    with pytest.raises(ValueError, match=r"weight >= 0"):
        DistillationSettings(weight=-1.0)
