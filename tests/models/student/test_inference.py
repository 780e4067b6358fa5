"""The inference form against the training form and, in bfloat16, against float64."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import ROOT, students

from liteframe import LiteFrameConfig, LiteFrameEncoder
from liteframe.models.student.inference import ByteEncoder, InferenceEncoder, InferenceMlp, _in_onednn

TINY = {**students.TINY, "heads": 3, "patch_size": 4, "image_size": 32, "teacher_dim": 20, "mlp_dim": 40}
MEAN_STD = {"image_mean": (0.48, 0.2, 0.7), "image_std": (0.2, 0.3, 0.25)}


@torch.no_grad()
def scrambled(**changed):
    encoder = LiteFrameEncoder(LiteFrameConfig(**TINY | MEAN_STD | changed)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in encoder.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + ("norm" in name and "weight" in name))
    return encoder


def frames_of(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def by_hand(frames, config, dtype=torch.float64):
    """Bytes normalized as the processors do, with NumPy's arithmetic in float64."""
    pixels = (frames.numpy() / 255.0).swapaxes(2, -1) - config.image_mean
    return torch.from_numpy((pixels / config.image_std).swapaxes(2, -1)).to(dtype)


CASES = {
    "as trained": ({}, (2, 8, 3, 32, 32)),
    "one frame": ({}, (1, 1, 3, 32, 32)),
    "a still": ({}, (2, 1, 3, 32, 32)),
    "a length to pad": ({}, (2, 5, 3, 32, 32)),
    "another size": ({}, (1, 4, 3, 48, 16)),
    "no mixer, no stride": ({"temporal_mixer": "none", "downsample": {}}, (1, 3, 3, 32, 32)),
    "five taps, other strides": ({"temporal_kernel": 5, "downsample": {1: (4, 1, 1), 3: (1, 2, 4)}}, (1, 8, 3, 32, 32)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_training_form_to_rounding(case):
    changed, shape = CASES[case]
    encoder, frames = scrambled(**changed), frames_of(*shape)
    form, how = encoder.for_inference(), {"still": case == "a still"}
    assert isinstance(form, InferenceEncoder)
    with torch.no_grad():
        exact = copy.deepcopy(encoder).double()(by_hand(frames, encoder.config), **how)
        trained = encoder(by_hand(frames, encoder.config, torch.float32), **how)
        scale = exact.abs().max()
        for name, found in {
            "bytes": form(frames, **how),
            "pixels": form(by_hand(frames, encoder.config, torch.float32), **how),
        }.items():
            assert found.shape == trained.shape, name
            assert (found - trained).abs().max() <= 1e-5 * scale, name
            assert (found - exact).abs().max() <= 1e-5 * scale, name


def test_in_bfloat16_it_is_as_close_to_float64_as_the_training_form():
    encoder, frames = scrambled().bfloat16(), frames_of(4, 8, 3, 32, 32)
    pixels = by_hand(frames, encoder.config)
    with torch.no_grad():
        exact = copy.deepcopy(encoder).double()(pixels)
        trained = (encoder(pixels.bfloat16()) - exact).square().mean().sqrt()
        for given in (frames, pixels.bfloat16()):
            found = encoder.for_inference()(given)
            assert found.dtype == torch.bfloat16
            assert (found - exact).square().mean().sqrt() <= 1.1 * trained
    assert trained < 0.1 * exact.square().mean().sqrt()


def test_tanh_gelu_on_an_unrounded_product_is_closer_than_erf_gelu_on_a_rounded_one():
    """What cuBLAS writes in bfloat16 against what two steps write: float32 products stand for its accumulators."""
    x = torch.randn(400, 1000, generator=torch.Generator().manual_seed(0)) * 2
    exact = F.gelu(x.double())
    one_step = F.gelu(x, approximate="tanh").bfloat16() - exact
    two_steps = F.gelu(x.bfloat16()) - exact
    assert one_step.square().mean() < two_steps.square().mean()


def test_the_gpu_road_of_the_mlp_is_torchs_own_function():
    """On a CPU that function has the erf form, so the two roads give the same numbers."""
    fc1, fc2 = torch.nn.Linear(6, 10), torch.nn.Linear(10, 6)
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        hidden = torch._addmm_activation(fc1.bias, x.flatten(0, 1), fc1.weight.t(), use_gelu=True)
        torch.testing.assert_close(fc2(hidden).unflatten(0, (2, 3)), InferenceMlp(fc1, fc2)(x))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-15)])
def test_on_a_cpu_onednn_applies_the_gelu(dtype, rounding):
    fc1, fc2 = torch.nn.Linear(6, 10).to(dtype), torch.nn.Linear(10, 6).to(dtype)
    mlp, x = InferenceMlp(fc1, fc2), 3 * torch.randn(2, 3, 6, dtype=dtype)
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Calls():
        found = mlp(x)
    assert ("_linear_pointwise" in calls) == _in_onednn(dtype) == ("gelu" not in calls)
    assert not _in_onednn(torch.float64)
    exact = copy.deepcopy(mlp).double()(x.double())
    assert (found - exact).norm() <= rounding * exact.norm()


def test_it_is_made_once_and_again_when_weights_change():
    encoder, frames = scrambled(), frames_of(1, 4, 3, 32, 32)
    form = encoder.for_inference()
    assert encoder.for_inference() is form
    assert copy.deepcopy(encoder)._form is None
    assert set(encoder.state_dict()) == set(scrambled().state_dict())
    shared = {p.data_ptr() for p in form.parameters()} & {p.data_ptr() for p in encoder.parameters()}
    assert encoder.blocks[0].attn.qkv.weight.data_ptr() in shared

    def changed(change):
        change()
        with torch.no_grad():
            expected = encoder(by_hand(frames, encoder.config, next(encoder.parameters()).dtype))
            torch.testing.assert_close(encoder.for_inference()(frames), expected, rtol=1e-4, atol=1e-4)

    with torch.no_grad():
        changed(lambda: encoder.blocks[1].ls1.mul_(2))
        changed(lambda: encoder.load_state_dict({n: t * 0.9 for n, t in encoder.state_dict().items()}))
    weight = encoder.patch_embed.weight
    changed(lambda: setattr(weight, "data", weight.data * 2))
    changed(lambda: encoder.train().blocks[0].ls2.data.mul_(3))
    changed(lambda: encoder.eval().double())


def test_what_cannot_be_folded_is_encoded_as_it_is():
    encoder, frames = scrambled(), frames_of(1, 4, 3, 32, 32)
    seen = []
    encoder.blocks[2].register_forward_hook(lambda *_: seen.append(1))
    form = encoder.for_inference()
    assert isinstance(form, ByteEncoder)
    with torch.no_grad():
        torch.testing.assert_close(form(frames), encoder(by_hand(frames, encoder.config, torch.float32)))
    assert len(seen) == 2


def test_bad_input_is_named():
    form = scrambled().for_inference()
    with pytest.raises(ValueError, match=r"uint8, or normalized.*int64"):
        form(torch.zeros(1, 4, 3, 32, 32, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"36x32.*multiple of 8"):
        form(frames_of(1, 4, 3, 36, 32))


def test_it_compiles_without_a_break():
    encoder, frames = scrambled(), frames_of(1, 8, 3, 32, 32)
    form = encoder.for_inference()
    with torch.no_grad():
        compiled = torch.compile(form, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(frames), form(frames), rtol=1e-4, atol=1e-5)


def test_the_snippet_of_the_docs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "bytes.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scrambled().save_pretrained("runs/my_ctd/encoder")
    names = {"frames": frames_of(1, 4, 3, 32, 32)}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], names)
    assert names["features"].shape == (1, 1, 4, 4, 20)
