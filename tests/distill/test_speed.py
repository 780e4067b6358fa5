"""Compiled blocks, recomputed activations and a teacher in bfloat16 change time and memory, not results or names."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from worlds.ctd import make_vlm_folder
from worlds.students import make_student, student_config

from liteframe.distill import speed
from liteframe.distill.speed import compile_blocks, prepare_teacher, whole_batches
from liteframe.models.teacher.load import load_teacher


@pytest.fixture
def student():
    return make_student(student_config(dim=32, teacher_dim=16), std=0.1)


def step(encoder, video):
    encoder.zero_grad()
    output = encoder(video)
    output.square().mean().backward()
    return [output.detach(), *(parameter.grad.clone() for parameter in encoder.parameters())]


def saved_bytes(encoder, video):
    """Bytes that the graph keeps for its backward pass, parameters left out."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = encoder(video)
    del output
    return sum(kept.values())


def test_recomputed_activations_give_the_same_bits_and_keep_less(student):
    video = torch.randn(2, 8, 3, 64, 64)
    plain, kept = step(student, video), saved_bytes(student, video)
    names = list(student.state_dict())
    student.checkpoint_activations()
    for ours, theirs in zip(step(student, video), plain, strict=True):
        assert torch.equal(ours, theirs)
    assert saved_bytes(student, video) < kept / 3
    assert list(student.state_dict()) == names


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_match_and_odd_batches_run_eagerly(student, recompute):
    video = torch.randn(2, 8, 3, 64, 64)
    plain, odd = step(student, video), step(student, video[:1])
    names = list(student.state_dict())
    if recompute:
        student.checkpoint_activations()
    compile_blocks(student, backend="aot_eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    for ours, theirs in zip(step(student, video), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled > 0, "nothing was compiled"
    with whole_batches(1, micro_batch_size=2):
        results = step(student, video[:1])
    for ours, theirs in zip(results, odd, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(student.state_dict()) == names
    assert torch.equal(copy.deepcopy(student)(video[:1]), student(video[:1]))


def test_teacher_takes_bfloat16_on_a_gpu_in_mixed_precision_only(tmp_path):
    folder = make_vlm_folder(tmp_path / "vlm")
    teacher, reference = load_teacher(folder), load_teacher(folder)
    for device, precision in (("cpu", "bf16-mixed"), ("cuda", "32-true")):
        prepare_teacher(teacher, torch.device(device), precision)
        assert teacher.dtype == torch.float32
    prepare_teacher(teacher, torch.device("cuda"), "bf16-mixed")
    assert teacher.dtype == torch.bfloat16
    assert teacher.projector is not None
    assert next(teacher.projector.parameters()).dtype == torch.float32
    assert teacher.identity == reference.identity
    video = torch.randn(1, 4, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = teacher(video).patches
    assert ours.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(ours.float(), reference(video).patches, dim=-1)
    assert cosine.min() > 0.999


def test_all_validations_of_a_run_share_their_graphs(fit, tmp_path, monkeypatch):
    """Steps, validation on the way and the last one: two graphs for each of three shapes, and one of the teacher.

    Dynamo keeps 8 for a block unless it is told, too few for five shapes; here it starts with too few for three.
    """
    monkeypatch.setattr(speed.compile_blocks, "__defaults__", ("eager", 1))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    three = ["--model.init", "random", "--model.student.depth", 3]
    with torch._dynamo.config.patch(recompile_limit=5, fail_on_recompile_limit_hit=True):
        fit("--run", tmp_path, *three, "--model.compile", "true", "--data.batch_size", 1, "--trainer.max_steps", 4)
    assert "val/token_cosine" in json.loads((tmp_path / "report.json").read_text())["figures"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * 3 + 1


def test_resume_across_the_switch(fit, tmp_path, monkeypatch):
    """Plain steps, then compiled and recomputed ones from the same checkpoint, give the plain run's weights."""
    monkeypatch.setattr(speed.compile_blocks, "__defaults__", ("aot_eager", 1))
    plain, switched = tmp_path / "plain", tmp_path / "switched"
    quiet = ["--trainer.val_check_interval", 100]
    fit("--run", plain, *quiet, "--trainer.max_steps", 4)
    torch.compiler.reset()
    fit("--run", switched, *quiet, "--trainer.max_steps", 4, "--model.compile", "true")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    names = load_file(plain / "encoder" / "model.safetensors").keys()
    assert load_file(switched / "encoder" / "model.safetensors").keys() == names
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (plain, switched)
    ]
    assert states[0].keys() == states[1].keys()
    assert not any("_orig_mod" in name for name in states[1])
    fit("--run", plain, *quiet, "--resume", "--trainer.max_steps", 6)
    fit("--run", switched, *quiet, "--resume", "--trainer.max_steps", 6, "--model.activation_checkpointing", "true")
    ours, theirs = (load_file(run / "encoder" / "model.safetensors") for run in (switched, plain))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    assert json.loads((switched / "report.json").read_text())["steps"] == 6
