"""CONTRIBUTING's recipes hold: a made-up one of each kind is added as it says, but from outside the repository.

Where a room has tests that hold for all of a kind, they are called here with the made-up one.
"""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answer import test_memories as invariants
from liteframe_export.card import write_graph_folder
from liteframe_export.graph import compare_graph
from reduce import test_reducers as reducer_properties
from safetensors.torch import load_file
from worlds import ROOT
from worlds.ctd import make_vlm_folder, write_ctd_config, write_video
from worlds.lma import make_chats
from worlds.published import touch, write_list
from worlds.students import make_student, student_config
from worlds.vlms import make_internvl, stir

import train_ctd
import train_lma
from liteframe import StreamSession, cost, load_video_llm, memories, reducers
from liteframe.align import module as align_module
from liteframe.align.conversation_files import load_conversations
from liteframe.align.objectives.sft import scale_gradients
from liteframe.answer.memory.base import StreamMemory, tokens_of_state, tokens_state
from liteframe.cli.main import main
from liteframe.data.importers import ADAPTERS, Adapter, License, Problem, Record
from liteframe.data.importers.base import layout_error, locate, read_list
from liteframe.data.manifest import load_manifest
from liteframe.distill.losses import clip_losses
from liteframe.distill.objectives import ClipLosses, CompressedTokens, objectives
from liteframe.evaluate.benchmarks import BENCHMARKS
from liteframe.evaluate.benchmarks.base import Benchmark, Dataset, Question
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.mixer import Mixer
from liteframe.models.student.mixers import MIXERS
from liteframe.models.student.weight_selection import initialize_student, select_from_student
from liteframe.models.teacher.base import ImageTower, Teacher, TeacherFeatures
from liteframe.models.vlm.attach import attach_encoder, processor_for
from liteframe.models.vlm.chat import IGNORE, question_prompt
from liteframe.models.vlm.family import FAMILIES, INTERNVL, family_of
from liteframe.models.vlm.internvl import (
    LiteFrameInternVLConfig,
    LiteFrameInternVLForConditionalGeneration,
    LiteFrameInternVLModel,
)
from liteframe.reduce import Reduced
from liteframe.reduce.base import join_tokens
from liteframe.reduce.pooled_teacher import PooledTeacher
from liteframe.reduce.reducer import Reducer
from liteframe.toyworld.model import CHECKPOINT, build_model, build_processor, build_tokenizer

TOP_LEVEL = ("liteframe/", "kernels/", "export/", "tests/", "configs/", "benchmarks/", "docs/", "train_")


def paths_of(text: str) -> set[str]:
    """What a text names in backticks or links to, if it lies in the repository."""
    named = re.findall(r"`([\w./]+)`", text) + re.findall(r"\]\(([\w./]+)\)", text)
    return {name for name in named if name.startswith(TOP_LEVEL)}


def test_every_path_of_the_map_and_of_the_recipes_exists():
    readme, contributing = (ROOT / "README.md").read_text(), (ROOT / "CONTRIBUTING.md").read_text()
    in_map, in_recipes = paths_of(readme.partition("## Map")[2]), paths_of(contributing)
    assert len(in_map) > 20
    assert len(in_recipes) > 20
    assert not [name for name in sorted(in_map | in_recipes) if not (ROOT / name).exists()]


def test_every_room_is_on_the_map():
    in_map = (ROOT / "README.md").read_text().partition("## Map")[2]
    rooms = {path.parent.name for path in (ROOT / "liteframe").glob("*/__init__.py")}
    assert not [room for room in sorted(rooms) if f"{room}/" not in in_map]


def test_a_kernel_is_a_folder_of_three_files():
    names = {"__init__.py", "op.py", "reference.py", "triton.py"}
    folders = [path.parent for path in (ROOT / "kernels/liteframe_kernels").glob("*/__init__.py")]
    assert len(folders) >= 3
    assert all({path.name for path in folder.glob("*.py")} == names for folder in folders)


class EveryNth(Reducer):
    """A reducer: tokens at even distances."""

    exact = True

    def reduce(self, signals, budget):
        keep = torch.zeros(signals.tokens.shape[:2], dtype=torch.bool)  # [F,n]
        keep.view(-1)[torch.arange(budget) * signals.count // budget] = True
        return Reduced.kept(signals, keep)


def test_add_a_reducer(monkeypatch):
    monkeypatch.setitem(reducers, "every_nth", EveryNth())
    reducer, request = reducers["every_nth"], SimpleNamespace(
        node=SimpleNamespace(callspec=SimpleNamespace(params={"reducer": "every_nth"}))
    )  # fmt: skip
    for frames in (8, 5, 1):
        for dtype in (torch.float64, torch.float32):
            reducer_properties.test_the_result_is_whole(reducer, frames, dtype)
    for holds in (
        reducer_properties.test_two_calls_agree_to_the_bit_and_change_nothing,
        reducer_properties.test_single_and_double_precision_choose_the_same_tokens,
        reducer_properties.test_a_permutation_of_channels_permutes_the_tokens,
        reducer_properties.test_equal_frames_give_equal_choices,
        reducer_properties.test_zeros_give_no_nan,
        reducer_properties.test_what_is_missing_is_named,
        reducer_properties.test_raster_order_is_the_same_tokens_by_frame_and_place,
        reducer_properties.test_fit_comes_within_a_percent_below_or_says_what_it_got,
        reducer_properties.test_half_precision_stays_it,
    ):
        holds(reducer)
    reducer_properties.test_a_whole_budget_changes_nothing(reducer, request)
    reducer_properties.test_one_token_a_frame_works_or_says_why_not(reducer, request)


class Blend(Mixer):
    """A temporal mixer: a learned part of the mean over frames in place of each token."""

    def __init__(self, shape):
        super().__init__(shape)
        self.part = torch.nn.Parameter(torch.zeros(shape.dim))

    def forward(self, x):
        return x + self.part * (x.mean(1, keepdim=True) - x)  # [B,T,N,C]

    def still(self, x):
        return x

    @staticmethod
    def params(shape):
        return shape.dim

    @staticmethod
    def flops(shape, frames, tokens):
        return 0

    @staticmethod
    def axes(kept):
        return {"part": (kept.residual,)}

    @staticmethod
    def describe(shape):
        return "blend"


def test_add_a_mixer(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(MIXERS, "blend", Blend)
    encoder = make_student(student_config(temporal_mixer="blend")).eval()
    video = torch.randn(1, 8, 3, 64, 64)
    still = video[:, :1].expand_as(video)
    with torch.no_grad():
        moving, frozen = encoder(video), encoder(still)
        for block in encoder.blocks:
            block.temporal.part.zero_()
        torch.testing.assert_close(encoder(still), frozen, atol=1e-4, rtol=1e-4)  # frames alike have nothing to blend
        torch.testing.assert_close(encoder.still(video[:, 0]), frozen[:, :1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(encoder(video), moving, atol=1e-2)
        for block in encoder.blocks:
            block.temporal.part.copy_(torch.arange(24.0))
    assert cost(encoder.config).params == sum(parameter.numel() for parameter in encoder.parameters())
    smaller = select_from_student(encoder, student_config(dim=12, temporal_mixer="blend"))
    assert smaller.blocks[0].temporal.part.tolist() == list(range(0, 24, 2))
    encoder.save_pretrained(tmp_path / "encoder")
    assert main(["info", str(tmp_path / "encoder")]) == 0
    assert "blend" in capsys.readouterr().out


class Stripes(ImageTower):
    """A teacher's tower: each patch's mean color, its query the whole frame's."""

    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(3, 3, bias=False)

    def forward_images(self, images):
        patches = F.avg_pool2d(images, 8).movedim(1, -1)  # [M,h,w,3]
        return TeacherFeatures(self.model(patches), self.model(patches.mean((1, 2))), None)

    def vit_weights(self):
        raise ValueError("not a ViT")


def test_add_a_teacher():
    teacher = Teacher(
        Stripes(), name="stripes", dim=3, patch_size=8, image_size=64, image_mean=(0.5,) * 3, image_std=(0.5,) * 3,
        resize="squash",
    )  # fmt: skip
    pooled = PooledTeacher(teacher)(torch.randn(2, 6, 3, 64, 32))
    assert (pooled.tokens.shape, pooled.slots.tolist()) == ((2, 2, 4, 2, 3), [[True, True]] * 2)
    assert not teacher.state_dict()
    with pytest.raises(ValueError, match="not a ViT"):
        initialize_student(make_student(student_config(teacher_dim=3)), teacher)


class TwinConfig(LiteFrameInternVLConfig):
    model_type = "liteframe_twin"


class TwinModel(LiteFrameInternVLModel):
    config_class = TwinConfig


class Twin(LiteFrameInternVLForConditionalGeneration):
    config_class = TwinConfig


def test_add_a_family(monkeypatch):
    """A twin of InternVL, which is known by its record alone."""
    record = dataclasses.replace(
        INTERNVL, model_type="twin", config_class=TwinConfig, model_class=TwinModel, generation_class=Twin
    )
    monkeypatch.setitem(FAMILIES, "twin", record)
    assert family_of("twin") is family_of("liteframe_twin") is record
    tokenizer = build_tokenizer()
    vlm, student = stir(build_model(tokenizer)).eval(), make_student().eval()
    expected = attach_encoder(vlm, student)
    monkeypatch.setattr(vlm.config, "model_type", "twin", raising=False)
    model = attach_encoder(vlm, student)
    assert (type(model), model.config.model_type) == (Twin, "liteframe_twin")
    processor = processor_for(build_processor(tokenizer), model.config)
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    inputs = processor(text=question_prompt("What colour is the circle?"), videos=[frames])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)


class LastSlots(StreamMemory):
    """A memory: the newest slots that fit its budget."""

    name = "last_slots"

    def __init__(self, budget):
        self.budget = budget
        self._slots = []

    def add(self, clip):
        counts = [count for _, _, count in clip.slots]
        fields = (clip.tokens, clip.frame, clip.place, clip.size)
        parts = zip(*(values.split(counts) for values in fields), clip.slots, strict=True)
        self._slots += [Reduced(*values, [slot]) for *values, slot in parts]
        while sum(len(slot.tokens) for slot in self._slots) > self.budget:
            self._slots.pop(0)

    def context(self, question):
        return join_tokens(self._slots) if self._slots else None

    def state(self):
        return tokens_state(join_tokens(self._slots)) if self._slots else {}

    def load_state(self, state):
        self._slots = []
        if state:
            self.add(tokens_of_state(state))

    def fork(self):
        other = LastSlots(self.budget)
        other._slots = list(self._slots)
        return other


def test_add_a_memory(monkeypatch, tmp_path):
    monkeypatch.setitem(memories, "last_slots", LastSlots)
    monkeypatch.setitem(invariants.SMALL, "last_slots", {"budget": 8})
    monkeypatch.setitem(invariants.ROOMY, "last_slots", {"budget": 1000})
    pair = load_video_llm(make_internvl(tmp_path / "vlm"), encoder=make_student(std=0.5))
    video = np.random.default_rng(0).integers(0, 256, (27, 48, 64, 3), dtype=np.uint8)

    def start(settings=invariants.SMALL, **options):
        return StreamSession(*pair, memories["last_slots"](**settings["last_slots"]), **options)

    invariants.test_bounded(start, video, "last_slots")
    invariants.test_asking_changes_nothing(start, video)
    invariants.test_later_frames_are_not_known_earlier(start, video)
    invariants.test_a_roomy_memory_shows_the_whole_prompt(start, video, pair, 27)
    invariants.test_pieces_in_which_frames_come_leave_no_trace(start, video)
    invariants.test_what_is_shown_is_in_order(start, video)
    for way in ("save", "fork"):
        invariants.test_goes_on_after_save_or_fork_as_without(start, video, tmp_path, way, False)
    invariants.test_forks_do_not_leak(start, video, False)
    invariants.test_empty(start, video)


class Distance(CompressedTokens):
    """An objective of distillation: the mean distance of tokens from their targets."""

    steps: list = []

    def loss(self, tokens, target):
        distances = (tokens - target.values).norm(dim=-1)  # [B,T',h,w]
        losses = ClipLosses(clip_losses(distances, target.weight), target.clipped)
        self.steps.append((losses.per_clip.detach(), tokens.shape))
        return losses


def test_add_an_objective_of_distillation(monkeypatch, tmp_path):
    monkeypatch.setitem(objectives, "ctd", Distance)
    (tmp_path / "videos").mkdir()
    for seed in range(4):
        write_video(tmp_path / "videos" / f"{seed}.mp4", seed=seed)
    teacher, run = make_vlm_folder(tmp_path / "teacher"), tmp_path / "run"
    trainer = {"max_steps": 2, "val_check_interval": 2}
    config = write_ctd_config(tmp_path / "run.yaml", teacher, tmp_path / "videos", run, trainer=trainer)
    monkeypatch.setattr("sys.argv", ["train_ctd.py", "fit", "--config", str(config)])
    train_ctd.main()
    trained = [losses for losses, shape in Distance.steps if shape == (2, 2, 4, 4, 32)]
    assert len(trained) >= 2
    assert all(losses.isfinite().all() and (losses > 0).all() for losses in trained)
    assert LiteFrameEncoder.from_pretrained(run / "encoder").config.teacher_dim == 32


class FirstWords:
    """An objective of alignment: the cross-entropy of each answer's first token, a mean over conversations."""

    steps: list = []

    def __init__(self):
        self.losses = []

    def loss(self, model, inputs, batch):
        logits = model(**inputs).logits  # [B,L,vocabulary]
        first = (batch.labels != IGNORE).int().argmax(1)  # [B]
        rows = torch.arange(len(first))
        losses = F.cross_entropy(logits[rows, first - 1].float(), batch.labels[rows, first], reduction="none")  # [B]
        self.losses.append(losses.detach())
        return losses.sum(), logits

    def normalize(self, parameters, micro_batches, all_reduce):
        losses = torch.cat(self.losses)
        self.losses.clear()
        count = all_reduce(torch.tensor(float(len(losses))))
        scale_gradients(parameters, micro_batches / count.item())
        self.steps.append((losses.mean(), torch.nn.utils.get_total_norm(p.grad for p in parameters)))
        return {"train/loss": (all_reduce(losses.sum()) / count).item()}


def test_add_an_objective_of_alignment(monkeypatch, tmp_path):
    """One step over the same four conversations, at once and one by one."""
    monkeypatch.setattr(align_module, "SupervisedFineTuning", FirstWords)
    rows = make_chats(tmp_path, sharpness=10)
    for size in (4, 1):
        words = {
            "--config": ROOT / "configs/lma/toy.yaml", "--run": tmp_path / f"run_{size}",
            "--model.vlm": tmp_path / "vlm", "--model.encoder": tmp_path / "encoder", "--data.conversations": rows,
            "--data.frames": "[8]", "--data.batch_size": 4, "--data.micro_batch_size": size,
            "--trainer.max_steps": 1, "--trainer.accelerator": "cpu",
        }  # fmt: skip
        monkeypatch.setattr("sys.argv", ["train_lma.py", "fit", *(str(w) for pair in words.items() for w in pair)])
        train_lma.main()
    (loss, norm), (other_loss, other_norm) = FirstWords.steps
    assert norm > 0
    torch.testing.assert_close((loss, norm), (other_loss, other_norm), atol=1e-4, rtol=1e-3)
    adapter = load_file(tmp_path / "run_4" / "adapter" / "adapter_model.safetensors")
    assert any(value.any() for name, value in adapter.items() if "lora_B" in name)


class Sizes(Benchmark):
    """A benchmark: one list of questions beside its videos."""

    name = "sizes"
    title = "Sizes"
    layout = "sizes.json and the videos"
    prompt = "{question}\n{options}\nAnswer:"

    def load(self, source):
        rows = json.loads((source / "sizes.json").read_text())
        return Dataset(
            tuple(
                Question(str(i), str(source / row["video"]), row["q"], row["a"], ("small", "large"), "AB", {"of": "x"})
                for i, row in enumerate(rows)
            ),
            (source / "sizes.json",),
        )


def test_add_a_benchmark(monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "sizes", Sizes())
    write_video(tmp_path / "v.mp4")
    rows = [{"video": "v.mp4", "q": "What size?", "a": "A"}, {"video": "v.mp4", "q": "And what size?", "a": "B"}]
    (tmp_path / "sizes.json").write_text(json.dumps(rows))
    call = ["eval", "sizes", str(tmp_path), "--vlm", str(CHECKPOINT), "--frames", "4", "-o", str(tmp_path / "out")]
    assert main(call) == 0
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"], row["frames"]) for row in answers] == [("0", "A", 4), ("1", "B", 4)]
    assert all(isinstance(row["reply"], str) for row in answers)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["settings"]["benchmark"] == "sizes"


class Zoo(Adapter):
    """An importer: captions in one list, videos below `films`."""

    name = "zoo"
    title = "Zoo"
    published = "two videos"
    license = License("CC0-1.0", ("no duties",), "https://example.org/zoo")

    def records(self, source):
        path = source.folder / "captions.json"
        if not path.is_file():
            raise layout_error(source.folder, "captions.json and films/", "download both")
        for where, row in read_list(path):
            video = locate(source.folder, ("films",), row["film"], where, "unzip films.zip")
            if isinstance(video, Problem):
                yield video
            else:
                turns = [{"from": "human", "value": "Describe it."}, {"from": "gpt", "value": row["caption"]}]
                yield Record(video, where, {"keeper": row["keeper"]}, (turns,))


def test_add_a_data_set(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(ADAPTERS, "zoo", Zoo())
    folder = tmp_path / "zoo"
    films = [touch(folder / "films" / name) for name in ("a.mp4", "b.mp4")]
    rows = [{"film": name, "caption": f"An animal, {name}.", "keeper": "K"} for name in ("a.mp4", "b.mp4", "c.mp4")]
    write_list(folder / "captions.json", rows)
    out, chats = tmp_path / "zoo.jsonl", tmp_path / "chats.jsonl"
    assert main(["manifest", "zoo", str(folder), "-o", str(out), "--conversations", str(chats)]) == 0
    assert "CC0-1.0" in capsys.readouterr().out
    assert [entry.video for entry in load_manifest(out)] == [str(film) for film in films]
    assert [chat.media[0].files[0] for chat in load_conversations(chats)] == [str(film) for film in films]
    (bad,) = map(json.loads, (tmp_path / "zoo.bad.jsonl").read_text().splitlines())
    assert (bad["kind"], bad["video"], bad["remedy"]) == ("missing", "c.mp4", "unzip films.zip")


USAGE = "load {folder}: [B,{frames},3,{size},{size}] -> [B,T/{t},H/{row},W/{column},{dim}], {dtype}\n"


def test_add_a_runtime(tmp_path):
    """A runtime that is torch itself: with its weights as they are it passes, with rounded ones nothing is written."""
    make_student().save_pretrained(tmp_path / "encoder")
    encoder = LiteFrameEncoder.from_pretrained(tmp_path / "encoder")

    def export(out, dtype):
        def write(folder):
            other = LiteFrameEncoder(encoder.config).eval()
            other.load_state_dict({name: value.to(dtype) for name, value in encoder.state_dict().items()})
            torch.save(other.state_dict(), folder / "weights.pt")

            def run(video):
                with torch.inference_mode():
                    return other(video)

            return compare_graph(encoder, run, torch.float32, {"made up": "1"})

        return write_graph_folder(tmp_path / "encoder", encoder.config, out, write, USAGE, "nothing", "float32")

    parity = export(tmp_path / "good", torch.float32)
    assert parity["max_relative_difference"] <= parity["tolerance"]
    names = {path.name for path in (tmp_path / "good").iterdir()}
    assert {"weights.pt", "config.json", "preprocessor_config.json", "parity.json", "README.md", "LICENSE"} <= names
    with pytest.raises(ValueError, match="nothing is written"):
        export(tmp_path / "bad", torch.bfloat16)
    assert not (tmp_path / "bad").exists()
