"""The count of bytes: single operations by hand, forms of the student within their bounds, exports like the library."""

import json

import pytest
import torch
import torch.nn.functional as F
from liteframe_kernels import temporal_conv
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from liteframe.bench import bytes as bench_bytes
from liteframe.bench.byte_count import KINDS, ByteCounter, backward, count, fake_gpu, kind_of
from liteframe.bench.bytes import forms, forward_kinds, inference_form, on_gpu, student
from liteframe.cli.bench import exported_encoder
from liteframe.cli.main import main
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.teacher.base import TeacherFeatures
from liteframe.reduce.pooled_teacher import PooledTeacher

HALF = torch.bfloat16


def gpu(*shape, dtype=HALF):
    return torch.empty(*shape, dtype=dtype, device="cuda")


# Computation -> elements read and written, two bytes each.
OPERATIONS = {
    "sum": (lambda: (gpu(4, 10), gpu(4, 10)), lambda a, b: a + b, 3 * 40),
    "sum with a vector": (lambda: (gpu(4, 10), gpu(10)), lambda a, b: a + b, 2 * 40 + 10),
    "sum with itself": (lambda: (gpu(4, 10),), lambda a: a + a, 2 * 40),
    "sum in place": (lambda: (gpu(4, 10), gpu(4, 10)), lambda a, b: a.add_(b), 3 * 40),
    "views": (lambda: (gpu(4, 10),), lambda a: a.t()[1:].unflatten(1, (2, 2)).expand(9, 2, 2), 0),
    "an expanded view": (lambda: (gpu(1, 10),), lambda a: a.expand(4, 10).contiguous(), 10 + 40),
    "copy": (lambda: (gpu(4, 10), gpu(4, 10)), lambda a, b: a[:2].copy_(b[:2]), 2 * 20),
    "into a slice": (lambda: (gpu(4, 10), gpu(4, 5)), lambda a, b: torch.add(b, b, out=a[:, 5:]), 2 * 20),
    "cat": (lambda: (gpu(4, 10), gpu(2, 10)), lambda a, b: torch.cat([a, b]), 2 * 60),
    "nothing yet": (lambda: (gpu(4, 10),), torch.empty_like, 0),
    "zeros": (lambda: (gpu(4, 10),), torch.zeros_like, 40),
    "rows of a table": (lambda: (gpu(99, 10),), lambda a: a.index_select(0, gpu(3, dtype=torch.int64)), 12 + 60),
    "linear": (
        lambda: (gpu(2, 4, 10), gpu(20, 10), gpu(20)),
        lambda x, w, b: F.linear(x, w, b),
        80 + 200 + 20 + 160,
    ),
    "our kernel": (
        lambda: (gpu(1, 4, 5, 8), gpu(8, 3), gpu(8)),
        lambda x, w, b: temporal_conv(x, w, b, residual=True),
        2 * 160 + 24 + 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OPERATIONS)
def test_an_operation_counts_what_it_reads_and_writes(case):
    make, call, elements = OPERATIONS[case]
    with fake_gpu(), torch.no_grad():
        given = make()
        assert count(lambda: call(*given)).total == 2 * elements


def test_attention_is_one_kernel():
    """Queries, keys and values in, output and float32 log-sum-exp out; a product of all tokens is never written."""
    with fake_gpu(), torch.no_grad():
        q, k, v = (gpu(2, 3, 128, 64) for _ in range(3))
        counter = count(lambda: F.scaled_dot_product_attention(q, k, v))
    assert counter.by_kind()["attention"] == pytest.approx(4 * q.nbytes + 2 * 3 * 128 * 4, abs=64)
    with fake_gpu(), pytest.raises(ValueError, match="are not counted"):
        F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_gradients_node_by_node_are_those_of_torchs_engine():
    encoder = LiteFrameEncoder(LiteFrameConfig(dim=32, depth=2, heads=2, teacher_dim=16, downsample={1: (2, 2, 2)}))
    video = torch.randn(1, 4, 3, 56, 56)
    encoder(video).square().mean().backward()
    expected = {name: weight.grad for name, weight in encoder.named_parameters()}
    encoder.zero_grad()
    backward(encoder(video).square().mean())
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], msg=name)


def test_a_backward_pass_counts():
    with fake_gpu():
        x, layer = gpu(4, 10).requires_grad_(), nn.Linear(10, 20, device="cuda", dtype=HALF)
        kinds = count(lambda: backward(layer(x).sum())).by_kind()
    forward = 40 + 200 + 20 + 80
    one = 1  # the gradient of a sum, repeated by strides
    assert kinds["matrix products"] == 2 * (forward + (one + 200 + 40) + (one + 40 + 200))


def test_targets_are_pooled_in_float32_from_half_precision_features_without_a_copy_of_them():
    teacher = nn.Identity()
    teacher.temporal_patch = 1
    pooled = PooledTeacher(teacher)
    with fake_gpu(), torch.no_grad():
        patches, query = gpu(2, 4, 4, 4, 8), gpu(2, 4, 8)
        mask = torch.ones(2, 4, dtype=torch.bool, device="cuda")
        counter = count(lambda: pooled.pool(TeacherFeatures(patches, query, None), mask))
    read = patches.nbytes + query.nbytes + mask.nbytes
    assert counter.by_operation["weighted_average_pool"] == read + 4 * patches.numel() // 16
    assert counter.total < 1.1 * counter.by_operation["weighted_average_pool"]  # the rest is of masks


def test_no_matrix_product_of_a_step_is_in_float32(monkeypatch):
    """So that `torch.set_float32_matmul_precision` has nothing to say: "high" would round the rest, too."""
    found = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if kind_of(func.overloadpacket.__name__) == "matrix products":
                found.update((func.overloadpacket.__name__, leaf.dtype) for leaf in args if torch.is_tensor(leaf))
            return func(*args, **(kwargs or {}))

    def watched(call):
        with Products():
            call()
        return ByteCounter()

    monkeypatch.setattr(bench_bytes, "count", watched)
    bench_bytes.step_kinds(LiteFrameConfig(depth=5, downsample={4: (4, 2, 2)}), live=False)
    assert {name for name, _ in found} >= {"mm", "addmm"}
    assert {dtype for _, dtype in found} == {HALF}


# GB of 128 frames of 448 pixels, bfloat16; a pass over the tokens of all blocks takes 0.96.
BOUNDS = {
    "eager, without kernels": 57.6,
    "eager, kernels": 37.1,
    "inference form, kernels": 28.7,
}


@pytest.fixture(scope="module")
def counted():
    chosen = [form for form in forms(exported_encoder) if form.form in BOUNDS or form.what == "export"]
    return {(form.what, form.form): form.kinds() for form in chosen if form.what in ("student", "export")}


def test_each_form_of_the_student_stays_below_its_bound(counted):
    for form, bound in BOUNDS.items():
        assert sum(counted["student", form].values()) <= 1e9 * bound, form


def test_exports_move_what_the_library_moves(counted):
    library, exported = counted["student", "inference form, kernels"], counted["export", "kernels"]
    assert sum(exported.values()) == pytest.approx(sum(library.values()), rel=0.05)
    kernels = {kind: size for kind, size in exported.items() if kind not in KINDS}
    assert kernels == {kind: size for kind, size in library.items() if kind not in KINDS}
    assert sum(counted["export", "without Triton"].values()) <= 45.6e9


def test_the_inference_form_has_neither_gelu_nor_layer_scale_nor_copies_of_tokens(counted):
    before, after = counted["student", "eager, kernels"], counted["student", "inference form, kernels"]
    assert "GELU" in before
    assert not {"GELU", "products"} & set(after)
    assert after["copies and casts"] < 0.2 * before["copies and casts"]


def test_the_command_writes_the_table(tmp_path, monkeypatch):
    def few(exported):
        return [form for form in forms(None) if form.form == "eager, kernels" and form.what == "student"]

    monkeypatch.setattr(bench_bytes, "forms", few)
    assert main(["bench", "bytes", "-o", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "bytes.json").read_text())["rows"]
    assert row["passes"] == pytest.approx(row["bytes"] / 957_677_568, rel=1e-3)
    assert row["ms_at_3.0_TB_s"] == pytest.approx(row["bytes"] / 3e9)
    assert f"| student | eager, kernels | {row['bytes'] / 1e9:.1f} |" in (tmp_path / "bytes.md").read_text()


def test_a_form_takes_the_inputs_of_its_model():
    """At a small size, so that every form can be tried in a moment."""
    config = LiteFrameConfig(dim=32, depth=2, heads=2, teacher_dim=16, downsample={1: (2, 2, 2), 2: (2, 1, 1)})
    with fake_gpu():
        video = gpu(2, 8, 3, 448, 448)
    trained = sum(forward_kinds(student(config), video).values())
    exported = sum(forward_kinds(on_gpu(exported_encoder(config, True)), video).values())
    folded = sum(forward_kinds(inference_form(config), video).values())
    assert exported == folded < trained
