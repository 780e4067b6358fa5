"""Weight selection: index sets of methods 18.6, one set everywhere, and exact repetition of an equal-sized teacher."""

import pytest
import torch

from liteframe import LiteFrameConfig, LiteFrameEncoder, load_teacher
from liteframe.models.student.weight_selection import initialize_student, select_weights, uniform_indices

# The size of conftest's tiny InternVL tower.
EQUAL = {
    "dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64, "patch_size": 8, "image_size": 32, "teacher_dim": 32,
    "clip_frames": 4,
}  # fmt: skip


def filled_with_nan(config):
    """A new student, everything that its teacher is to bring made NaN."""
    student = LiteFrameEncoder(config)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if not ("temporal" in name or "downsample" in name):
                parameter.fill_(float("nan"))
    return student


def test_index_sets_of_the_reference():
    channels = uniform_indices(1024, 768).tolist()
    assert channels[:6] == [0, 1, 3, 4, 5, 7]
    assert channels[-3:] == [1020, 1022, 1023]
    assert len(set(channels)) == 768
    assert uniform_indices(16, 12).tolist() == [0, 1, 3, 4, 5, 7, 8, 10, 11, 12, 14, 15]
    assert uniform_indices(12, 4).tolist() == [0, 3, 6, 9]
    assert uniform_indices(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert uniform_indices(5, 1).tolist() == [0]
    with pytest.raises(ValueError, match="cannot select 6 of 5"):
        uniform_indices(5, 6)


def test_equal_student_repeats_the_teacher_exactly(vlm_folder):
    teacher = load_teacher(vlm_folder)
    student = filled_with_nan(LiteFrameConfig(**EQUAL, downsample={}))
    assert initialize_student(student, teacher).random == ()
    video = torch.randn(2, 3, 3, 32, 32)
    torch.testing.assert_close(student(video), teacher(video).patches, rtol=1e-5, atol=1e-5)


def test_compressing_student_starts_as_the_mean_of_the_teacher(vlm_folder):
    teacher = load_teacher(vlm_folder)
    student = filled_with_nan(LiteFrameConfig(**EQUAL, downsample={3: (4, 2, 2)}))
    initialize_student(student, teacher)
    video = torch.randn(1, 4, 3, 32, 32)
    mean = teacher(video).patches.reshape(1, 1, 4, 2, 2, 2, 2, 32).mean((2, 4, 6))
    torch.testing.assert_close(student(video), mean, rtol=1e-5, atol=1e-5)


def test_timm_and_transformers_names_give_the_same_student(vlm, vlm_folder, make, tmp_path):
    """The InternViT of both libraries, with the same weights, copied here by hand."""
    shape = {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8, "img_size": 32}
    timms = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, **shape)
    hf = {k: v for k, v in vlm.model.vision_tower.state_dict().items()}
    own = {
        "cls_token": hf["embeddings.cls_token"],
        "pos_embed": hf["embeddings.position_embeddings"],
        "patch_embed.proj.weight": hf["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": hf["embeddings.patch_embeddings.projection.bias"],
    }
    for i in range(3):
        a, b = f"blocks.{i}.", f"encoder.layer.{i}."
        for part in ("weight", "bias"):
            own[f"{a}norm1.{part}"] = hf[f"{b}layernorm_before.{part}"]
            own[f"{a}norm2.{part}"] = hf[f"{b}layernorm_after.{part}"]
            own[f"{a}attn.qkv.{part}"] = torch.cat([hf[f"{b}attention.{x}_proj.{part}"] for x in "qkv"])
            own[f"{a}attn.proj.{part}"] = hf[f"{b}attention.projection_layer.{part}"]
            own[f"{a}mlp.fc1.{part}"] = hf[f"{b}mlp.fc1.{part}"]
            own[f"{a}mlp.fc2.{part}"] = hf[f"{b}mlp.fc2.{part}"]
        own[f"{a}ls1.gamma"], own[f"{a}ls2.gamma"] = hf[f"{b}lambda_1"], hf[f"{b}lambda_2"]
    timms.tower.model.load_state_dict(own)
    video = torch.randn(1, 2, 3, 32, 32)
    theirs = load_teacher(vlm_folder)
    torch.testing.assert_close(timms(video).patches, theirs(video).patches, rtol=1e-5, atol=1e-5)
    config = LiteFrameConfig(**EQUAL | {"dim": 24, "heads": 3, "depth": 2, "mlp_dim": 40}, downsample={1: (2, 2, 2)})
    one, two = select_weights(timms, config).weights, select_weights(theirs, config).weights
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_every_tensor_is_set_from_consistent_indices(vlm, vlm_folder):
    config = LiteFrameConfig(**EQUAL | {"dim": 24, "heads": 3, "depth": 2, "mlp_dim": 40}, downsample={2: (2, 2, 2)})
    student = filled_with_nan(config)
    initialize_student(student, load_teacher(vlm_folder))
    state = student.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in state.values())

    hf = vlm.model.vision_tower.state_dict()
    channels, heads, hidden = uniform_indices(32, 24), uniform_indices(4, 3), uniform_indices(64, 40)
    rows = torch.cat([torch.arange(8 * h, 8 * h + 8) for h in heads])  # whole heads
    for i in range(2):
        b = f"encoder.layer.{i}."
        for part, x in enumerate("qkv"):
            ours = state[f"blocks.{i}.attn.qkv.weight"][24 * part : 24 * part + 24]
            assert torch.equal(ours, hf[f"{b}attention.{x}_proj.weight"][rows][:, channels])
            bias = state[f"blocks.{i}.attn.qkv.bias"][24 * part : 24 * part + 24]
            assert torch.equal(bias, hf[f"{b}attention.{x}_proj.bias"][rows])
        weight = hf[f"{b}attention.projection_layer.weight"]
        assert torch.equal(state[f"blocks.{i}.attn.proj.weight"], weight[channels][:, rows])
        assert torch.equal(state[f"blocks.{i}.mlp.fc1.weight"], hf[f"{b}mlp.fc1.weight"][hidden][:, channels])
        assert torch.equal(state[f"blocks.{i}.mlp.fc1.bias"], hf[f"{b}mlp.fc1.bias"][hidden])
        assert torch.equal(state[f"blocks.{i}.mlp.fc2.weight"], hf[f"{b}mlp.fc2.weight"][channels][:, hidden])
        assert torch.equal(state[f"blocks.{i}.ls1"], hf[f"{b}lambda_1"][channels])
        assert torch.equal(state[f"blocks.{i}.ls2"], hf[f"{b}lambda_2"][channels])
        assert torch.equal(state[f"blocks.{i}.norm2.bias"], hf[f"{b}layernorm_after.bias"][channels])
        assert not state[f"blocks.{i}.temporal.weight"].any()
    assert torch.equal(state["pos_embed"], hf["embeddings.position_embeddings"][..., channels])
    assert torch.equal(state["cls_token"], hf["embeddings.cls_token"][..., channels])
    assert torch.equal(state["patch_embed.weight"], hf["embeddings.patch_embeddings.projection.weight"][channels])
    assert torch.equal(state["downsample.2.weight"], torch.full((24, 2, 2, 2), 1 / 8))
    # The head puts the kept channels where they came from.
    x = torch.randn(24)
    full = state["head.weight"] @ x + state["head.bias"]
    assert torch.equal(full[channels], x)
    assert full.count_nonzero() == 24


def test_paper_sizes_on_real_architecture():
    """InternViT-300M (one block of it) to the student of the paper."""
    teacher = load_teacher("timm/vit_intern300m_patch14_448", pretrained=False, depth=1)
    config = LiteFrameConfig(depth=1, downsample={1: (4, 2, 2)})
    weights = select_weights(teacher, config).weights
    own = {name: t.shape for name, t in LiteFrameEncoder(config).state_dict().items()}
    assert own | {name: t.shape for name, t in weights.items()} == own
    assert set(own) - set(weights) == {
        f"{part}.{name}" for part in ("blocks.0.temporal", "downsample.1") for name in ("weight", "bias")
    }


def test_position_tables_drop_registers_and_keep_cls():
    shape = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 32}
    base = {"pretrained": False, **shape}
    with_registers = load_teacher("timm/vit_small_patch16_224", **base, reg_tokens=2)
    table = with_registers.tower.model.pos_embed
    assert table.shape[1] == 1 + 2 + 16
    ours = with_registers.tower.vit_weights().tensors["pos_embed"]
    assert torch.equal(ours, torch.cat([table[:, :1], table[:, 3:]], 1))
    patches_only = load_teacher("timm/vit_small_patch16_224", **base, reg_tokens=2, no_embed_class=True)
    ours = patches_only.tower.vit_weights().tensors["pos_embed"]
    assert torch.equal(ours[:, 1:], patches_only.tower.model.pos_embed)
    assert not ours[:, 0].any()


def test_other_patch_and_image_sizes_are_resampled(vlm_folder):
    teacher = load_teacher(vlm_folder)
    config = LiteFrameConfig(**EQUAL | {"patch_size": 4, "image_size": 24}, downsample={})
    kernel = teacher.tower.model.embeddings.patch_embeddings.projection.weight
    with torch.no_grad():
        kernel.copy_(torch.randn(32, 3, 1, 1).expand_as(kernel))
    weights = select_weights(teacher, config).weights
    assert weights["pos_embed"].shape == (1, 1 + 36, 32)
    # A uniform image gives the same embedding through either kernel.
    torch.testing.assert_close(weights["patch_embed.weight"].sum((2, 3)), kernel.sum((2, 3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 64, "heads": 8}, "dim \\(student 64, teacher 32\\), heads \\(student 8, teacher 4\\)"),
        ({"depth": 4}, "depth \\(student 4, teacher 3\\)"),
        ({"mlp_dim": 128}, "mlp_dim \\(student 128, teacher 64\\)"),
        ({"heads": 1}, "dim / heads \\(student 32, teacher 8\\)"),
        ({"teacher_dim": 48}, "teacher_dim=48, but the teacher has 32"),
    ],
)
def test_a_teacher_that_is_too_small_is_an_error(vlm_folder, change, words):
    config = LiteFrameConfig(**EQUAL | change, downsample={})
    with pytest.raises(ValueError, match=words):
        select_weights(load_teacher(vlm_folder), config)
