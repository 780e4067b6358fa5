"""Encoders as ONNX and torch.export graphs: every size, both precisions, used where liteframe cannot be imported."""

import contextlib
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import onnxruntime
import pytest
import torch
import torch._inductor.config
from liteframe_export import graph as graph_module
from liteframe_export.graph import check_inputs, check_shapes, compare_graph, traceable
from worlds import ROOT

from benchmarks import onnx_parity
from liteframe.cli.main import main
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.mixers import MIXERS

# [B,T,3,H,W] that the export itself does not try; every number is 1 somewhere.
SIZES = [(1, 4, 3, 16, 16), (3, 8, 3, 48, 80), (2, 12, 3, 16, 96), (1, 16, 3, 64, 64)]


@pytest.fixture(scope="module")
def encoder(world):
    return LiteFrameEncoder.from_pretrained(world.encoder)


@pytest.fixture(scope="module")
def onnx_folders(world, tmp_path_factory):
    """Exports by dtype, made by benchmarks/onnx_parity.py, and beside them, in `parity`, what it measured."""
    made = tmp_path_factory.mktemp("onnx")
    (made / "parity").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        kept = SimpleNamespace(TemporaryDirectory=lambda: contextlib.nullcontext(str(made)))
        patch.setattr(onnx_parity, "tempfile", kept)
        onnx_parity.main(["--encoder", str(world.encoder), "-o", str(made / "parity")])
    return made


@pytest.fixture(scope="module")
def onnx_folder(onnx_folders):
    return onnx_folders / "float32"


@pytest.fixture(scope="module")
def torch_folder(world):
    out = world.root / "as-torch"
    assert main(["export", "torch", str(world.encoder), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def program(torch_folder):
    """The graph of torch.export, loaded."""
    return torch.export.load(torch_folder / "encoder.pt2").module(check_guards=False)


def features(session, video):
    return torch.from_numpy(session.run(None, {"video": video.numpy()})[0])


@pytest.mark.parametrize("size", SIZES)
def test_onnx_computes_what_the_encoder_computes(encoder, onnx_folder, size):
    session = onnxruntime.InferenceSession(onnx_folder / "encoder.onnx")
    video = torch.randn(size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = encoder(video)
    torch.testing.assert_close(features(session, video), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("size", [(1, 6, 3, 64, 64), (1, 8, 3, 70, 64), (1, 8, 3, 64, 72)])
def test_onnx_refuses_sizes_that_it_would_cut(onnx_folder, size):
    session = onnxruntime.InferenceSession(onnx_folder / "encoder.onnx")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="cannot be reshaped"):
        session.run(None, {"video": torch.zeros(size).numpy()})


def test_onnx_in_float16(onnx_folders, encoder):
    session = onnxruntime.InferenceSession(onnx_folders / "float16" / "encoder.onnx")
    video = torch.randn(2, 8, 3, 48, 64, generator=torch.Generator().manual_seed(3)).half()
    found = features(session, video)
    with torch.inference_mode():
        expected = encoder(video.float())
    assert found.dtype == torch.float16
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert 1e-6 < error < 1e-2


def test_the_script_measures_and_the_committed_table_is_its_own(onnx_folders):
    record = json.loads((onnx_folders / "parity" / "onnx_parity.json").read_text())
    assert set(record["reports"]) == {"float32", "float16"}
    assert record["reports"]["float32"]["max_relative_difference"] < 1e-5 < record["reports"]["float16"]["tolerance"]
    kept = json.loads((ROOT / "benchmarks/onnx_parity.json").read_text())
    assert (ROOT / "benchmarks/onnx_parity.md").read_text() == onnx_parity.as_markdown(kept)
    shapes = [case["video"] for case in kept["reports"]["float32"]["cases"]]
    assert len({tuple(shape[3:]) for shape in shapes}) == 3
    assert len({shape[1] for shape in shapes}) == 2


@pytest.mark.parametrize("size", SIZES)
def test_program_computes_what_the_encoder_computes(encoder, program, size):
    video = torch.randn(size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = encoder(video)
        torch.testing.assert_close(program(video), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_parity_covers_one_slot_and_a_clip_at_three_sizes(onnx_folder, torch_folder, encoder):
    for folder in (onnx_folder, torch_folder):
        parity = json.loads((folder / "parity.json").read_text())
        assert [tuple(case["video"]) for case in parity["cases"]] == check_shapes(encoder.config)
        assert {case["video"][1] for case in parity["cases"]} == {4, 8}
        assert len({tuple(case["video"][3:]) for case in parity["cases"]}) == 3
        assert parity["max_relative_difference"] == max(case["relative_difference"] for case in parity["cases"]) <= 1e-5
        assert min(min(case["torch_ms"], case["graph_ms"]) for case in parity["cases"]) > 0


def test_parity_is_the_difference_that_is_there(onnx_folder, torch_folder, program, encoder):
    """On the report's own videos, apart from a few roundings."""
    session = onnxruntime.InferenceSession(onnx_folder / "encoder.onnx")
    for folder, run in ((onnx_folder, lambda video: features(session, video)), (torch_folder, program)):
        generator = torch.Generator().manual_seed(0)
        for case in json.loads((folder / "parity.json").read_text())["cases"]:
            video = torch.randn(case["video"], generator=generator)
            with torch.inference_mode():
                expected, found = encoder(video).double(), run(video).double()
            largest = float(expected.abs().max())
            assert case["largest_feature"] == pytest.approx(largest, rel=1e-5)
            assert case["relative_difference"] == pytest.approx(
                float((found - expected).abs().max()) / largest, abs=1e-6
            )


def test_parity_finds_one_wrong_number(encoder):
    """One feature off by a share of the largest, another share at each size; 1e-4 is too much, and so is no number."""
    shapes = check_shapes(encoder.config)
    shares = {shape: 1e-5 * (i + 1) for i, shape in enumerate(shapes)}

    def graph(video, off):
        found = encoder(video)
        found[-1, -1, -1, -1, -1] += off(tuple(video.shape)) * found.abs().max()
        return found

    def report(off):
        with torch.inference_mode():
            return compare_graph(encoder, lambda video: graph(video, off), torch.float32, {})

    parity = report(shares.get)
    assert [case["relative_difference"] for case in parity["cases"]] == pytest.approx(list(shares.values()), rel=0.02)
    assert parity["max_relative_difference"] == pytest.approx(max(shares.values()), rel=0.02)
    for wrong in (1.5e-4, float("nan")):
        with pytest.raises(ValueError, match="nothing is written"):
            report(lambda shape, wrong=wrong: wrong if shape == shapes[-1] else 0)


def test_the_cards_code_runs_without_liteframe(onnx_folder, torch_folder):
    """One process for both, each with names of its own."""
    code = "import sys, os\nsys.modules['liteframe'] = sys.modules['liteframe_kernels'] = None\n"
    for folder in (onnx_folder, torch_folder):
        card = (folder / "README.md").read_text()
        assert "cc-by-nc-4.0" in card
        (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        code += f"os.chdir({str(folder.parent)!r})\nexec({snippet!r}, {{}})\n"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["(1, 2, 4, 4, 128)"] * 2


LAYOUTS = {
    "contiguous": lambda: torch.randn(3, 6, 3, 48, 16),
    "permuted": lambda: torch.randn(3, 3, 6, 48, 16).permute(0, 2, 1, 3, 4),
    "channels last": lambda: torch.randn(2, 4, 48, 16, 3).permute(0, 1, 4, 2, 3),
    "transposed": lambda: torch.randn(1, 2, 3, 16, 48).mT,
    "sliced": lambda: torch.randn(4, 8, 3, 80, 64)[::2, 1:5, :, 3:67:2, 8:40],
    "expanded": lambda: torch.randn(2, 1, 3, 32, 1).expand(2, 4, 3, 32, 16),
    "unaligned": lambda: torch.randn(1 * 2 * 3 * 16 * 16 + 1)[1:].view(1, 2, 3, 16, 16),
}
REFUSED = {
    "float16": (lambda: torch.randn(1, 2, 3, 32, 32).half(), "float32"),
    "bfloat16": (lambda: torch.randn(1, 2, 3, 32, 32).bfloat16(), "float32"),
    "float64": (lambda: torch.randn(1, 2, 3, 32, 32).double(), "float32"),
    "uint8": (lambda: torch.randint(0, 255, (1, 2, 3, 32, 32), dtype=torch.uint8), "float32"),
    "5 frames": (lambda: torch.randn(1, 5, 3, 32, 32), r"T a multiple of 2.*\[1, 5, 3, 32, 32\]"),
    "no frame": (lambda: torch.randn(1, 0, 3, 32, 32), "T a multiple of 2"),
    "40 rows": (lambda: torch.randn(1, 2, 3, 40, 32), "H of 16"),
    "36 columns": (lambda: torch.randn(1, 2, 3, 32, 36), "W of 16"),
    "8 rows": (lambda: torch.randn(1, 2, 3, 8, 32), "H of 16"),
    "grey": (lambda: torch.randn(1, 2, 1, 32, 32), r"\[B,T,3,H,W\], got \[1, 2, 1, 32, 32\]"),
    "an image": (lambda: torch.randn(2, 3, 32, 32), r"\[B,T,3,H,W\], got \[2, 3, 32, 32\]"),
    "on another device": (lambda: torch.empty(1, 2, 3, 32, 32, device="meta"), "CPU"),
    "sparse": (lambda: torch.randn(1, 2, 3, 32, 32).to_sparse(), "dense"),
}


def test_compiled_package(smallest, tmp_path):
    """C++ through AOTInductor, loaded as torch says: takes what the encoder takes, whatever it looks like in memory."""
    encoder = LiteFrameEncoder.from_pretrained(smallest)
    with torch._inductor.config.patch({"aot_inductor.precompile_headers": False}):  # of one file they save nothing
        assert main(["export", "torch", str(smallest), str(tmp_path / "out"), "--compiled"]) == 0
    package = torch._inductor.aoti_load_package(str(tmp_path / "out/encoder.aoti.pt2"))
    for layout, video in {name: make() for name, make in LAYOUTS.items()}.items():
        before = video.clone()
        with torch.inference_mode():
            torch.testing.assert_close(package(video), encoder(video), atol=1e-5, rtol=1e-4, msg=layout)
        assert torch.equal(video, before)
    for make, reason in REFUSED.values():
        with pytest.raises(RuntimeError, match=reason):
            package(make())
    inputs = json.loads((tmp_path / "out/parity.json").read_text())["inputs"]
    assert inputs["with its channels before its frames"] == inputs["cut out of a larger one"] == "taken"
    assert inputs["in float64"] == inputs["with frames that are no multiple of a slot"] == "refused"


def test_graphs_take_layouts_and_refuse_the_rest(encoder, onnx_folder, torch_folder, program):
    session = onnxruntime.InferenceSession(onnx_folder / "encoder.onnx")
    state = onnxruntime.capi.onnxruntime_pybind11_state
    for run, refusals in (
        (lambda video: features(session, video), (state.Fail, state.InvalidArgument)),
        (program, RuntimeError),
    ):
        for video in (
            torch.randn(2, 3, 4, 32, 48).transpose(1, 2),
            torch.randn(2, 4, 32, 48, 3).movedim(-1, 2),
            torch.randn(4, 8, 3, 64, 64)[::2, 1:5, :, 8:40, 16:64],
        ):
            with torch.inference_mode():
                expected = encoder(video)
                torch.testing.assert_close(run(video), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        for video in (
            torch.randn(1, 4, 3, 32, 32).half(),
            torch.randn(1, 4, 3, 32, 32).double(),
            torch.randn(1, 4, 1, 32, 32),
        ):
            with pytest.raises(refusals):
                run(video)
    for folder in (onnx_folder, torch_folder):
        inputs = json.loads((folder / "parity.json").read_text())["inputs"]
        assert set(inputs.values()) == {"taken", "refused"}
        assert inputs["with its channels last"] == "taken"
        assert inputs["of one channel"] == "refused"


@pytest.mark.parametrize(
    ("graph", "kind"),
    [
        (lambda encoder, video: encoder(video.as_strided(video.shape, video.contiguous().stride())), "channels last"),
        (lambda encoder, video: encoder(video[:, : video.shape[1] // 4 * 4]), "no multiple of a slot"),
        (lambda encoder, video: encoder(video.float()), "float16"),
        (lambda encoder, video: encoder(video.expand(-1, -1, 3, -1, -1)), "of one channel"),
    ],
)  # fmt: skip
def test_a_graph_that_answers_for_the_encoder_is_found(encoder, graph, kind):
    with torch.inference_mode(), pytest.raises(ValueError, match=kind):
        check_inputs(encoder, lambda video: graph(encoder, video), torch.float32, (ValueError, RuntimeError))


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_wrong_graph_is_refused_and_leaves_nothing(runtime, smallest, monkeypatch, capsys):
    right = graph_module._resampled_positions
    monkeypatch.setattr(graph_module, "_resampled_positions", lambda self, grid: 1.5 * right(self, grid))
    more = ["--dtype", "float16"] if runtime == "onnx" else []
    assert main(["export", runtime, str(smallest), str(smallest.parent / "wrong"), *more]) == 2
    assert f"more than {0.01 if more else 1e-4:g}; nothing is written" in capsys.readouterr().err
    assert not list(smallest.parent.glob("wrong*"))


def test_a_missing_runtime_is_named(world, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "onnx", str(world.encoder), str(world.root / "none")]) == 2
    assert "pip install 'liteframe[onnx]'" in capsys.readouterr().err


def test_traceable_is_the_encoder_at_its_own_size(encoder):
    """Resampling to the size that is there changes no bit."""
    video = torch.randn(2, 8, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(traceable(encoder)(video), encoder.for_inference()(video))


def test_each_mixer_has_a_traceable_form():
    assert set(graph_module.TRACEABLE) == set(MIXERS.values())
    assert all(issubclass(form, mixer) for mixer, form in graph_module.TRACEABLE.items())


def test_licenses(onnx_folder, torch_folder):
    for folder in (onnx_folder, torch_folder):
        assert (folder / "LICENSE").read_text(encoding="utf-8") == (ROOT / "LICENSE").read_text(encoding="utf-8")
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "`LICENSE` (Apache-2.0) is that of the code above. It does not cover the weights" in card
        assert "The teacher's license (cc-by-nc-4.0) applies here too" in card
        assert "Python files" not in card  # there are none
