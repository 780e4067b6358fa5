"""True sizes on a GPU that is not there: fake tensors on cuda:0 find tensors of two devices, and count live bytes.

Kernels and attention are the GPU's (their fakes know what they give and keep), numbers are none. The autograd engine
wants a real GPU, so what a backward pass adds is taken from the widest block, computed again on top of what is kept.
"""

import weakref
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from liteframe.align.lora import LoraSettings, add_lora
from liteframe.align.objectives.sft import answer_loss
from liteframe.bench.systems import internvl3_8b_config, make_inputs
from liteframe.data.preprocess import FrameFormat
from liteframe.distill.clips import RawBatch, dress
from liteframe.distill.losses import batch_loss
from liteframe.distill.objectives.ctd import CompressedTokens
from liteframe.distill.statistics import RunningStatistics
from liteframe.distill.targets import TargetSettings
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.encoder import LiteFrameEncoder, summed
from liteframe.models.teacher.load import load_teacher
from liteframe.models.vlm import placeholders
from liteframe.models.vlm.attach import attach_encoder
from liteframe.models.vlm.family import family_of
from liteframe.reduce.pooled_teacher import PooledTeacher

GPU = torch.device("cuda:0")
GIB = 2**30


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages on the GPU that are alive, and the most that ever were."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.peak = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.device == GPU:
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key, size):
        self.alive.discard(key)
        self.now -= size


def flash_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """What a GPU takes for half precision; transformers writes a causal mask out where it believes it is traced."""
    query, key, value = (x.bfloat16() for x in (query, key, value))  # autocast's doing
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    causal = is_causal or attn_mask is not None
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, causal, scale=scale)[0]


@pytest.fixture
def rehearsal(monkeypatch):
    """A context in which everything that is made is fake, and autocast believes in the GPU; gives its live bytes."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", flash_attention)

    @contextmanager
    def begun():
        with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
            yield live

    return begun


def on_gpu(*modules):
    """Modules of the meta device, with storage on the fake GPU."""
    for part in (part for module in modules for part in module.modules()):
        for name, weight in part._parameters.items():
            if weight is not None:
                moved = torch.empty_like(weight, device=GPU)
                part._parameters[name] = torch.nn.Parameter(moved, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else torch.empty_like(buffer, device=GPU)


def raw_batch(clips, frames):
    pixels = torch.empty(clips * frames * 480 * 640 * 3, dtype=torch.uint8, device=GPU)
    mask = torch.ones(clips, frames, dtype=torch.bool, device=GPU)
    sizes = [(448, 448)] * clips
    return RawBatch(pixels, [(frames, 480, 640, 3)] * clips, sizes, mask, ["v"] * clips, [], [(0, 0)] * clips, None)


@pytest.mark.parametrize(("recompute", "forward", "most"), [(False, 18.3, 19.0), (True, 5.0, 8.5)])
def test_ctd_of_eight_clips(rehearsal, recompute, forward, most):
    """InternViT-300M and the 87M student at 16 frames of 448 pixels: one device, as many GiB as were found."""
    with torch.device("meta"):
        teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False)
        teacher.tower.to(torch.bfloat16)  # as prepare_teacher does
        student = LiteFrameEncoder(LiteFrameConfig())
        objective = CompressedTokens(teacher.dim, TargetSettings(), "mse")
    student.train()
    if recompute:
        student.checkpoint_activations()
    frames = FrameFormat((448, 448), teacher.image_mean, teacher.image_std, teacher.resize)
    with rehearsal() as live:
        on_gpu(*teacher.parts, student, *objective.modules().values())
        batch = dress(raw_batch(8, 16), frames.transform())
        live.peak = live.now
        with torch.autocast("cuda", dtype=torch.bfloat16):
            with torch.no_grad():
                pooled = PooledTeacher(teacher)(batch.video, batch.frame_mask)
            RunningStatistics(teacher.dim, GPU).update(pooled.tokens.flatten(0, -2))
            target = objective.targets(pooled.tokens, pooled.slots)
            tokens = student(batch.video)
            loss = batch_loss(objective.loss(tokens, target).per_clip, 8)
            cosine = objective.figures(tokens, target)["cosine"]
        assert {x.device for x in (*pooled[:2], *target, tokens, loss, cosine)} == {GPU}
        assert tokens.shape == pooled.tokens.shape == (8, 4, 16, 16, 1024)
        assert live.peak / GIB == pytest.approx(forward, rel=0.02)
        if recompute:
            x = torch.empty(8, 16, 1025, 768, device=GPU, requires_grad=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                again = summed(student.blocks[0]._mix(x))
            assert again.shape == x.shape
        assert live.peak / GIB < most


def test_lma_of_512_frames(rehearsal, monkeypatch):
    """InternVL3-8B with LoRA behind the student, layers recomputed: one device, as many GiB as were found."""
    monkeypatch.setattr(placeholders, "check_placeholders", lambda *_: [])  # reads numbers, of which there are none
    with torch.device("meta"):
        config = internvl3_8b_config()
        vlm = family_of(config.model_type).hf_class._from_config(config, dtype=torch.bfloat16)
        encoder = LiteFrameEncoder(LiteFrameConfig()).bfloat16()
        model = attach_encoder(vlm, encoder)
        adapted = add_lora(model, LoraSettings()).train()
    language_model = model.model.language_model
    language_model.gradient_checkpointing_enable({"use_reentrant": False})
    with rehearsal() as live:
        on_gpu(adapted)
        inputs = make_inputs(model, encoder.config, 512, 1)
        positions = torch.arange(64, device=GPU)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = adapted(
                input_ids=inputs["input_ids"],
                pixel_values_videos=inputs.pop("pixel_values_videos").float(),
                video_frames=[512],
                use_cache=False,
                logits_to_keep=positions,
            ).logits
            loss = answer_loss(logits, inputs["input_ids"], positions)
        assert {x.device for x in loss} == {GPU}
        assert live.peak / GIB == pytest.approx(19.7, rel=0.02)
        hidden = torch.empty(
            1, inputs["input_ids"].shape[1], 3584, dtype=torch.bfloat16, device=GPU, requires_grad=True
        )
        turned = tuple(torch.empty(1, hidden.shape[1], 128, dtype=torch.bfloat16, device=GPU) for _ in range(2))
        language_model.layers[0].gradient_checkpointing = False
        with torch.autocast("cuda", dtype=torch.bfloat16):
            again = language_model.layers[0](hidden, position_embeddings=turned)
        assert tree_leaves(again)[0].shape == hidden.shape
        assert live.peak / GIB < 22.2
