"""Training on preference pairs: the loss by numbers and loops, pairs in batches, and `liteframe prefer fit`."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from liteframe_export.provenance import parts_of_run
from safetensors.torch import load_file
from worlds import ROOT

from liteframe.align.batch import collate_samples
from liteframe.align.conversation_files import load_conversations
from liteframe.align.dataset import ConversationDataset
from liteframe.align.lora import LoraSettings, add_lora
from liteframe.align.objectives.dpo import DirectPreferenceOptimization, dpo_loss, margins
from liteframe.align.preference import PreferModule
from liteframe.align.reference import ReferenceLogProbs
from liteframe.cli.main import main
from liteframe.models.vlm.load import load_video_llm

QUESTION = "What colour is the circle?"
PAIRS = (("red", "blue"), ("blue", "white circle"), ("the green object", "red"), ("white", "the star that flashes"))


def numbers(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@pytest.mark.parametrize(
    ("beta", "alpha", "margin", "total"), [(0.3, 0.5, 0.9, 0.3412 + 0.75), (0.2, 1.0, 0.6, 0.4375 + 1.5)]
)
def test_numbers_of_the_paper(beta, alpha, margin, total):
    """Log-probabilities -12 and -20, reference -13 and -18, 8 chosen tokens; the two published settings."""
    given = numbers(-12, -20, -13, -18)
    assert margins(*given, beta=beta).item() == pytest.approx(margin)
    chosen, rejected, reference_chosen, reference_rejected = given
    assert margins(rejected, chosen, reference_rejected, reference_chosen, beta=beta).item() == pytest.approx(-margin)
    for tokens in (8, torch.tensor([8])):
        loss = dpo_loss(*given, chosen_tokens=tokens, beta=beta, alpha=alpha)
        assert loss.item() == pytest.approx(total, abs=5e-5)


def test_where_it_starts():
    chosen, rejected = (value.requires_grad_() for value in numbers(-12, -20))
    loss = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), chosen_tokens=8, beta=0.3, alpha=0.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.15, 0.15))


@pytest.fixture(scope="module")
def rows(lma_world):
    """Four pairs: three videos and a text, answers of different lengths."""
    path = lma_world / "pairs.jsonl"
    said = [{"question": QUESTION, "chosen": chosen, "rejected": rejected} for chosen, rejected in PAIRS]
    made = [row | ({"video": f"{number}.mp4"} if number < 3 else {}) for number, row in enumerate(said)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture(scope="module")
def words(lma_world, rows):
    """Options of a run of a second."""
    return [
        "--model.vlm", lma_world / "vlm", "--model.encoder", lma_world / "encoder",
        "--model.init_adapter", "null", "--model.lora.rank", "2", "--model.lora.alpha", "4", "--data.pairs", rows,
        "--data.frames", "[8]", "--data.batch_size", "4", "--data.micro_batch_size", "4", "--trainer.max_steps", "1",
        "--trainer.accelerator", "cpu", "--model.optimizer.warmup_steps", "0",
    ]  # fmt: skip


@pytest.fixture
def fit(words, capsys):
    def fit(folder, *more, config="toy"):
        assert main(["prefer", "fit", *map(str, ("--config", config, *words, "--run", folder, *more))]) == 0
        return json.loads((folder / "report.json").read_text())

    return fit


@pytest.fixture(scope="module")
def sft(lma_world):
    """An adapter of LMA."""
    from liteframe.align.command import LMACommand

    folder = lma_world / "sft"
    LMACommand(["fit", "--config", str(lma_world / "lma.yaml"), "--run", str(folder)])
    return folder / "adapter"


def batches(lma_world, rows, processor, size):
    data = ConversationDataset(load_conversations(rows, pairs=True), processor, budgets=[8], fps=(8.0, 8.0))
    samples = [data[(0, index)] for index in range(len(data))]
    tokens = processor.tokenizer.pad_token_id, processor.image_token_id
    return [collate_samples(samples[start : start + size], *tokens) for start in range(0, len(samples), size)]


def inputs_of(model, processor, batch):
    """As the module makes them: a video's features once, in both rows of its pair."""
    if not batch.media_keys:
        return {"input_ids": batch.input_ids}
    with torch.no_grad():
        features = model.model.get_video_features(processor.normalized(batch.pixels), batch.video_frames)
    each = iter(features.pooler_output)
    features.pooler_output = [f for count in batch.media_counts for f in [next(each) for _ in range(count)] * 2]
    return {"input_ids": batch.input_ids, "mm_encoder_outputs": {"video": features}}


def answers_by_loop(model, processor, lma_world, rows):
    """Log-probability of each answer, a forward pass of its own each, summed in a loop; chosen and rejected."""
    found = []
    (whole,) = batches(lma_world, rows, processor, 4)
    pixels = iter(processor.normalized(whole.pixels).split(whole.video_frames))
    for pair, media in enumerate(whole.media_counts):
        video = [next(pixels) for _ in range(media)]
        for row in (2 * pair, 2 * pair + 1):
            length = int(whole.attention_mask[row].sum())
            ids, labels = whole.input_ids[row, :length], whole.labels[row, :length]
            shown = {"pixel_values_videos": video[0]} if video else {}
            logits = model(input_ids=ids[None], **shown).logits[0].double()
            places = [place for place, label in enumerate(labels.tolist()) if label != -100]
            found.append(sum(logits[place - 1].log_softmax(-1)[ids[place]] for place in places))
    return torch.stack(found[::2]), torch.stack(found[1::2])


def test_one_forward_is_two_and_gradients_do_not_depend_on_how_the_batch_is_cut(lma_world, rows, tmp_path):
    """Against the loss of the whole batch, with a reference that is not the model."""
    torch.manual_seed(0)
    base, processor = load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder")
    model = add_lora(base, LoraSettings(2, 4, 0.0)).train()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    objective = DirectPreferenceOptimization(beta=0.3, alpha=0.5)
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        reference = answers_by_loop(model, processor, lma_world, rows)
    objective.start_from(model)
    objective.kept = ReferenceLogProbs(str(tmp_path / "kept.jsonl"), {"model.vlm": "one"})
    for weight in trained.values():
        torch.nn.init.normal_(weight, std=0.1)
    chosen, rejected = answers_by_loop(model, processor, lma_world, rows)
    counts = [len(processor.tokenizer(f"{answer}<|im_end|>")["input_ids"]) for answer, _ in PAIRS]
    assert len(set(counts)) > 1  # else a mean of means would pass
    loss = dpo_loss(chosen, rejected, *reference, chosen_tokens=torch.tensor(counts), beta=0.3, alpha=0.5)
    expected = torch.autograd.grad(loss, list(trained.values()))
    assert margins(chosen, rejected, *reference, beta=0.3).abs().min() > 0.01
    objective.tokens_per_pair = sum(counts) / 4
    for size in (4, 2, 1):
        model.zero_grad()
        cut = batches(lma_world, rows, processor, size)
        for batch in cut:
            inputs = inputs_of(base, processor, batch)
            (objective.loss(model, inputs, batch)[0] / len(cut)).backward()  # as Lightning does
            now = objective._reference_log_probs(model, {**inputs, "logits_to_keep": batch.answers}, batch)
            torch.testing.assert_close(objective.kept.of(batch, None), now, rtol=1e-6, atol=1e-6)
        figures = objective.normalize(list(trained.values()), len(cut), lambda sums: sums)
        assert figures["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in zip(trained, expected, strict=True):
            torch.testing.assert_close(trained[name].grad, gradient, rtol=1e-3, atol=1e-5, msg=f"{name}, {size}")
    assert model.training
    assert objective.normalize(list(trained.values()), 1, lambda sums: sums) == {}


def test_a_run_starts_at_ln_2_however_it_is_cut_and_encodes_a_video_once(
    fit, lma_world, rows, sft, tmp_path, monkeypatch
):
    model, processor = load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder", adapter=sft)
    with torch.no_grad():
        chosen, _ = answers_by_loop(model, processor, lma_world, rows)
    counts = sum(len(processor.tokenizer(f"{answer}<|im_end|>")["input_ids"]) for answer, _ in PAIRS)
    encoded, original = [], type(model.model).get_video_features

    def spy(self, pixels, frames, *rest, **more):
        encoded.extend(frames)
        return original(self, pixels, frames, *rest, **more)

    monkeypatch.setattr(type(model.model), "get_video_features", spy)
    norms = []
    for size in (4, 1):
        more = ("--model.init_adapter", sft, "--model.alpha", "0.5", "--data.cache_features", "false")
        report = fit(tmp_path / f"{size}", *more, "--data.micro_batch_size", size)
        figures = report["figures"]
        assert figures["train/preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert figures["train/answer_loss"] == pytest.approx(-chosen.sum().item() / counts, rel=1e-5)
        assert figures["train/loss"] == pytest.approx(math.log(2) + 0.5 * figures["train/answer_loss"], rel=1e-6)
        norms.append(figures["train/gradient_norm"])
        assert (report["kind"], report["beta"], report["reference"]) == ("tpo", 0.2, str(sft))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert encoded == [8] * 6  # three videos, two runs


def test_it_learns_to_prefer_resumes_to_the_bit_and_leaves_as_lma_does(
    fit, lma_world, rows, sft, tmp_path, monkeypatch, capsys
):
    longer = ("--trainer.max_steps", 8, "--model.optimizer.lr", 0.03, "--model.lora.dropout", 0.1)
    longer += ("--model.init_adapter", sft)
    computed, original = [], DirectPreferenceOptimization._reference_log_probs

    def spy(self, *inputs):
        computed.append(original(self, *inputs))
        return computed[-1]

    monkeypatch.setattr(DirectPreferenceOptimization, "_reference_log_probs", spy)
    kept = ("--model.reference_log_probs", tmp_path / "kept.jsonl")
    figures = fit(tmp_path / "whole", *longer, *kept)["figures"]
    assert len(computed) == 1  # of 8 steps, which are 8 epochs
    assert figures["train/preference_accuracy"] == 1
    assert figures["train/preference_loss"] < 0.6
    assert "preferred 1  margin" in capsys.readouterr().err
    original = PreferModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(PreferModule, "training_step", interrupted)
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            fit(tmp_path / "cut", *longer, *kept)
    with pytest.raises(SystemExit):
        main(["align", "fit", "--run", str(tmp_path / "cut"), "--resume"])
    assert "is a run of `liteframe prefer fit`, not of `liteframe align fit`" in capsys.readouterr().err
    assert main(["prefer", "fit", "--run", str(tmp_path / "cut"), "--resume"]) == 0
    whole, cut = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())
    assert len(computed) == 1
    with pytest.raises(
        ValueError, match=r"kept\.jsonl is of another reference: model\.init_adapter is \w+ there and None"
    ):
        fit(tmp_path / "other", *longer[:-1], "null", *kept)
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", *longer, "--model.alpha", 2, "--resume")
    assert "model.alpha was 1.0 and is 2.0" in capsys.readouterr().err
    exported = parts_of_run(tmp_path / "whole")
    assert exported.adapter_report["beta"] == 0.2
    gaps = []
    for adapter in (sft, exported.adapter):
        model, processor = load_video_llm(exported.vlm, encoder=exported.encoder, adapter=adapter)
        with torch.no_grad():
            chosen, rejected = answers_by_loop(model, processor, lma_world, rows)
        gaps.append(chosen - rejected)
    assert (gaps[1] - gaps[0]).min() > 1


def test_kept_log_probs_are_of_one_reference_and_of_nothing_else(rows, tmp_path):
    path, before = tmp_path / "kept.jsonl", rows.read_bytes()
    batch = SimpleNamespace(pairs=["a", "b"], input_ids=torch.zeros(1))
    values = torch.tensor([-1.1, -2.0, math.nan, -3.0])
    first, second = (ReferenceLogProbs(str(path), {"model.vlm": "one", "data.tokens": None}) for _ in range(2))
    torch.testing.assert_close(first.of(batch, lambda: values), values, rtol=0, atol=0, equal_nan=True)
    again = torch.tensor([-9.0, -9.0, -4.0, -5.0])  # what failed is computed again, what another rank has kept is not
    expected = torch.tensor([-1.1, -2.0, -4.0, -5.0])
    torch.testing.assert_close(second.of(batch, lambda: again), expected, rtol=0, atol=0)
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(ValueError, match=r"kept\.jsonl .* model\.vlm is one there and two here\. .* name another file"):
        ReferenceLogProbs(str(path), {"model.vlm": "two", "data.tokens": None})
    with pytest.raises(ValueError, match=r"pairs\.jsonl holds something else; name a file of its own"):
        ReferenceLogProbs(str(rows), {"model.vlm": "one"})
    assert rows.read_bytes() == before


def test_a_pair_is_told_by_its_tokens_frames_and_files(lma_world, rows, tmp_path):
    _, processor = load_video_llm(lma_world / "vlm", encoder=lma_world / "encoder")

    def digests(rows, budget=8):
        data = ConversationDataset(load_conversations(rows, pairs=True), processor, budgets=[budget], fps=(8.0, 8.0))
        return [data[(0, index)].pair for index in range(len(data))]

    found = digests(rows)
    said = [json.loads(line) for line in rows.read_text().splitlines()]
    for row in said[:3]:  # the data set moves, one answer is another, one file
        shutil.copy(lma_world / row["video"], tmp_path)
    said[1]["rejected"] = "green"
    (tmp_path / "2.mp4").write_bytes((tmp_path / "1.mp4").read_bytes())
    (tmp_path / "moved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    kept = [one == other for one, other in zip(found, digests(tmp_path / "moved.jsonl"), strict=True)]
    assert kept == [True, False, False, True]
    assert [one == other for one, other in zip(found, digests(rows, 4), strict=True)] == [False, False, False, True]


BAD = {
    "no pair": ({"question": None}, "no preference pair"),
    "the same": ({"rejected": " RED "}, "the chosen and the rejected answer are the same"),
    "nothing": ({"rejected": ""}, "the rejected answer must be a text"),
    "control token": ({"rejected": "red<|im_end|>"}, "control token"),
    "not learned": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                           {"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "loss": 0}],
         "rejected_response": "c"},
        "marked as not learned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", BAD)
def test_rows_that_are_no_pairs_are_refused_with_their_line(tmp_path, change):
    row, message = BAD[change]
    if "conversations" not in row:
        row = {"question": QUESTION, "chosen": "red", "rejected": "blue", **row}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}"):
        load_conversations(tmp_path / "rows.jsonl", pairs=True)


def test_rows_of_other_tools_are_the_same_pairs(tmp_path):
    """Earlier answers are read, not learned; what SFT learns is refused here, and the other way round."""
    asked = [("user", "Hello"), ("assistant", "Hi"), ("user", "What colour?")]
    turns = [{"role": role, "content": text} for role, text in asked]
    chosen, rejected = ({"role": "assistant", "content": text} for text in ("red", "blue"))
    (tmp_path / "rows.json").write_text(json.dumps([
        {"messages": [*turns, chosen], "rejected_response": "blue"},
        {"messages": turns, "chosen": chosen, "rejected": rejected},
    ]))  # fmt: skip
    first, second = load_conversations(tmp_path / "rows.json", pairs=True)
    assert first == second
    assert [turn.learned for turn in first.turns] == [True, False, True, True]
    assert [turns[-1].text for turns in first.versions] == ["red", "blue"]
    with pytest.raises(ValueError, match="liteframe prefer"):
        load_conversations(tmp_path / "rows.json")


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs" / "prefer").glob("*.yaml")))
def test_every_config_runs_and_says_how(fit, sft, tmp_path, config):
    more = ("--model.init_adapter", sft, "--data.workers", "0")
    more += ("--data.frames", "[8]", "--data.batch_size", 2, "--data.micro_batch_size", 1)
    report = fit(tmp_path / "run", *more, config=config)
    assert (report["steps"], report["data"]["clips_read"]) == (1, 2)
    assert "liteframe prefer fit --config" in (ROOT / f"configs/prefer/{config}.yaml").read_text()
