"""Four bits: what LoRA sits on is rounded as NF4 says, trains, and is exported on the original weights."""

import json
import sys
import weakref

import bitsandbytes as bnb
import pytest
import torch
from lightning.pytorch.strategies import Strategy
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liteframe.align.lora import LoraSettings, add_lora, quantize_frozen
from liteframe.cli.main import main

# The 16 values of NF4 (QLoRA, arXiv 2305.14314, appendix E).
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def nearest_nf4(weight):
    """Each block of 64 divided by its largest absolute value, to the nearest of the 16 values."""
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = NF4.double()
    return (values[(blocks / scale)[..., None].sub(values).abs().argmin(-1)] * scale).reshape(weight.shape)


def test_layers_are_rounded_as_nf4_says(model):
    original = {
        name: layer.weight.clone()
        for name, layer in model.model.language_model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    adapted = add_lora(model, LoraSettings(rank=2, dropout=0.0))
    assert quantize_frozen(adapted, torch.device("cpu")) == len(original) == 28
    x = torch.randn(5, 128)
    for name in ("layers.0.self_attn.k_proj", "layers.3.mlp.gate_proj"):
        layer = adapted.get_base_model().model.language_model.get_submodule(name)
        assert layer.base_layer.weight.dtype == torch.uint8
        expected = x.double() @ nearest_nf4(original[name]).T
        if layer.base_layer.bias is not None:
            expected += layer.base_layer.bias.double()
        found = layer(x).double()  # LoRA's B starts at zero
        # bitsandbytes rounds the blocks' scales to 8 bits as well: about half a per cent
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()
        assert (found - x.double() @ original[name].double().T).abs().max() > 1e-3
    trained = [p for p in adapted.parameters() if p.requires_grad]
    adapted.get_base_model().model.language_model(
        inputs_embeds=torch.randn(1, 4, 128)
    ).last_hidden_state.sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)


class OnDevice(TorchDispatchMode):
    """Most bytes of floating point tensors that lie on a device at a time, of those made within the block."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.peak, self.made = kind, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made += [
            weakref.ref(t)
            for t in tree_leaves(result)
            if isinstance(t, torch.Tensor) and t.device.type == self.kind and t.is_floating_point()
        ]
        alive = {t.untyped_storage()._cdata: t.nbytes for ref in self.made if (t := ref()) is not None}
        self.peak = max(self.peak, sum(alive.values()))
        return result


def test_the_device_holds_one_layer_at_a_time_that_is_not_rounded(model, monkeypatch):
    """The meta device stands for a GPU: bitsandbytes rounds there as well, but `to` does not ask for it."""

    def to(small, device):
        moved = bnb.nn.Params4bit(small.weight.data.to(device), quant_type=small.weight.quant_type, module=small)
        small.weight = moved._quantize(device)
        return small

    monkeypatch.setattr(bnb.nn.Linear4bit, "to", to)
    adapted = add_lora(model, LoraSettings(rank=2))
    layers = [layer.weight.nbytes for layer in model.model.language_model.modules() if hasattr(layer, "lora_A")]
    with OnDevice("meta") as device:
        assert quantize_frozen(adapted, torch.device("meta")) == 28
    rounded = [layer.weight for layer in adapted.modules() if isinstance(layer, bnb.nn.Linear4bit)]
    assert {(weight.device.type, weight.dtype) for weight in rounded} == {("meta", torch.uint8)}
    assert sum(weight.nbytes for weight in rounded) == sum(layers) / 8  # of float32
    # beside one layer the scales of all blocks of 64 and the biases
    assert max(layers) <= device.peak < 1.1 * max(layers) + sum(layers) / 64


@pytest.mark.usefixtures("reload_in_forks")
def test_a_run_in_four_bits_fits_the_original_weights(lma_world, run, tmp_path, monkeypatch):
    """Where Lightning makes a device the default one that holds no weights, what is rounded is loaded all the same."""
    reports, origins = {}, {}
    for kind in ("none", "nf4"):
        if kind == "nf4":
            monkeypatch.setattr(Strategy, "tensor_init_context", lambda self: torch.device("meta"))
        run("fit", "--config", lma_world / "lma.yaml", "--run", tmp_path / kind, "--model.quantize", kind)
        reports[kind] = json.loads((tmp_path / kind / "report.json").read_text())
        origins[kind] = json.loads((tmp_path / kind / "adapter" / "liteframe.json").read_text())
    assert reports["nf4"]["quantize"] == "nf4"
    assert origins["nf4"] == origins["none"]
    losses = [reports[kind]["figures"]["train/loss"] for kind in ("none", "nf4")]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.3)
    found = load_file(tmp_path / "nf4" / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in found)
    assert main(["export", "hf-vlm", str(tmp_path / "nf4"), str(tmp_path / "out")]) == 0


def test_a_missing_package_is_named(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"pip install 'liteframe\[quantize\]'"):
        quantize_frozen(add_lora(model, LoraSettings(rank=2)), torch.device("cpu"))
