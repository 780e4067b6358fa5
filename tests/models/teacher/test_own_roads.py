"""ViTs that take patches instead of images or normalize by themselves, and towers inside of whole Video LLMs."""

import pytest
import torch
import transformers
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from liteframe import load_teacher

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8}
HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
TEXT = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def saved(model, make, folder):
    model.eval()
    make.scramble(model)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (4, 4)])
def test_siglip2_gets_patches_as_its_processor_cuts_them(rows, columns, make, tmp_path):
    model = saved(
        transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(num_patches=16, **TINY)), make, tmp_path
    )
    video = torch.randn(1, 2, 3, 8 * rows, 8 * columns)
    patches = torch.stack([convert_image_to_patches(image, 8) for image in video[0]])
    # Its processor fills up to a number of patches; what is masked must not count.
    padded = torch.cat([patches, torch.randn(2, 4, patches.shape[2])], dim=1)
    mask = (torch.arange(padded.shape[1]) < rows * columns).long().expand(2, -1)
    with torch.no_grad():
        output = model(padded, mask, torch.tensor([[rows, columns]] * 2))
    teacher = load_teacher(tmp_path, **HALVES)
    assert (teacher.image_size, teacher.saliency) == (32, "probe")
    features = teacher(video)
    tokens = output.last_hidden_state[:, : rows * columns]
    torch.testing.assert_close(features.patches[0].flatten(1, 2), tokens, rtol=1e-4, atol=1e-5)
    pool = model.head.attention
    weights = pool(model.head.probe.expand(2, -1, -1), tokens, tokens, average_attn_weights=True)[1]
    torch.testing.assert_close(features.logits[0].flatten(1).exp(), weights[:, 0].detach(), rtol=1e-4, atol=1e-5)


def test_gemma4_gives_what_its_pooler_takes(make, tmp_path):
    config = transformers.Gemma4VisionConfig(num_key_value_heads=2, head_dim=8, position_embedding_size=64, **TINY)
    model = saved(transformers.Gemma4VisionModel(config), make, tmp_path)
    pixels = torch.rand(2, 3, 8 * 3, 8 * 6)
    patches = torch.stack([convert_image_to_patches(image, 8) for image in pixels])
    x, y = torch.meshgrid(torch.arange(6), torch.arange(3), indexing="xy")
    places = torch.stack([x, y], dim=-1).reshape(1, 18, 2).expand(2, -1, -1)
    with torch.no_grad():
        pooled = model(patches, places).last_hidden_state  # [M*2,C], means of 3x3 patches times sqrt(C)
    teacher = load_teacher(tmp_path)
    assert (teacher.image_mean, teacher.image_std, teacher.saliency) == (*HALVES.values(), "received")
    features = teacher(((pixels - 0.5) / 0.5)[None])
    ours = features.patches[0].unflatten(2, (2, 3)).mean((1, 3)) * 32**0.5  # [M,2,C]
    torch.testing.assert_close(ours.flatten(0, 1), pooled, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="normalizes frames by itself"):
        load_teacher(tmp_path, **HALVES)


def test_gemma4_s_attention_with_norms_and_a_scale_of_its_own(make, tmp_path):
    config = transformers.Gemma4VisionConfig(num_key_value_heads=2, head_dim=8, position_embedding_size=64, **TINY)
    saved(transformers.Gemma4VisionModel(config), make, tmp_path)
    eager = transformers.Gemma4VisionModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float64
    ).eval()
    seen = []
    eager.encoder.layers[-1].self_attn.register_forward_hook(lambda *args: seen.append(args[-1][1]))
    teacher = load_teacher(tmp_path, dtype=torch.float64)
    video = torch.randn(1, 2, 3, 24, 48, dtype=torch.float64)
    features = teacher(video)
    with torch.no_grad():
        teacher.tower.kind.run(eager, video[0], None)
    torch.testing.assert_close(features.logits[0].flatten(1).exp(), seen[0].mean((1, 2)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(24, 40), (32, 32)])
def test_radio_takes_normalized_frames_and_gives_its_features(size, make, tmp_path):
    config = transformers.RadioConfig(
        num_cls_tokens=2, num_registers=1, max_img_size=64, image_size=32, norm_mean=[0.4, 0.5, 0.6],
        norm_std=[0.2, 0.3, 0.4], mlp_ratio=1.5, **TINY,
    )  # fmt: skip
    model = saved(transformers.RadioModel(config), make, tmp_path)
    pixels = torch.rand(2, 3, *size)
    with torch.no_grad():
        output = model(pixels)
    teacher = load_teacher(tmp_path)
    mean, std = torch.tensor([[0.4, 0.5, 0.6], [0.2, 0.3, 0.4]])[..., None, None]
    features = teacher(((pixels - mean) / std)[None])
    torch.testing.assert_close(features.patches[0].flatten(1, 2), output.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.query[0], output.last_hidden_state[:, 0], rtol=1e-4, atol=1e-4)


def test_glm4v_gives_what_its_convolution_merges(make, tmp_path):
    """Pairs of frames that cannot be told from images, as its own processor cuts them."""
    vision = {"depth": 2, "num_heads": 4, "out_hidden_size": 16, "image_size": 32, **TINY, "intermediate_size": 48}
    model, _ = glm4v(vision)
    saved(model, make, tmp_path)
    tower = model.model.visual
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    processor = transformers.Glm4vImageProcessor(
        patch_size=8, do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    inputs = processor(images=list(images), return_tensors="pt")
    with torch.no_grad():
        merged = tower(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state  # [M*2*3,16]
    teacher = load_teacher(tmp_path, **HALVES)
    assert (teacher.temporal_patch, teacher.image_size) == (2, 32)
    video = (images / 255 - 0.5) / 0.5
    features = teacher(video[:, None].expand(-1, 2, -1, -1, -1))  # each image twice
    assert features.patches.shape == (2, 1, 4, 6, 32)
    with torch.no_grad():
        ours = tower.downsample(features.patches[:, 0].permute(0, 3, 1, 2)).flatten(2).mT
    torch.testing.assert_close(ours.flatten(0, 1), merged, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(features.logits.exp().sum((2, 3)), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"before its first block \(post_conv_layernorm\)"):
        teacher.tower.vit_weights()


def glm4v(vision=None):
    text = TEXT | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
    vision = vision or {"depth": 2, "num_heads": 4, "out_hidden_size": 16, "image_size": 32, **TINY}
    config = transformers.Glm4vConfig(text_config=text, vision_config=vision)
    return transformers.Glm4vForConditionalGeneration(config), "visual"


def gemma3():
    vision = transformers.SiglipVisionConfig(image_size=32, vision_use_head=False, **TINY)
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=TEXT, vision_config=vision, mm_tokens_per_image=4)
    ), "vision_tower"


def gemma4():
    vision = {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64, **TINY}
    text = TEXT | {"global_head_dim": 8, "hidden_size_per_layer_input": 0, "layer_types": ["full_attention"]}
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    return transformers.Gemma4ForConditionalGeneration(config), "vision_tower"


def smolvlm():
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={"image_size": 32, **TINY}, scale_factor=2
    )
    return transformers.SmolVLMForConditionalGeneration(config), "vision_model"


def perception_lm():
    arguments = {"img_size": 56, "embed_dim": 32, "depth": 2, "num_heads": 4}
    vision = {"model_type": "timm_wrapper", "architecture": "vit_pe_lang_large_patch14_448", "model_args": arguments}
    config = transformers.PerceptionLMConfig(
        text_config={"model_type": "llama", **TEXT}, vision_config={**vision, "num_features": 32}
    )
    return transformers.PerceptionLMForConditionalGeneration(config), "vision_tower"


@pytest.mark.parametrize("build", [gemma3, gemma4, glm4v, smolvlm, perception_lm])
def test_the_tower_of_a_whole_video_llm(build, make, tmp_path):
    model, attribute = build()
    saved(model, make, tmp_path)
    whole = getattr(model.model, attribute)
    teacher = load_teacher(tmp_path, **({} if build is gemma4 else HALVES))
    assert teacher.projector is None
    inside = getattr(whole, "timm_model", whole).state_dict()
    assert {name: tensor.shape for name, tensor in teacher.tower.model.state_dict().items()} == {
        name: tensor.shape for name, tensor in inside.items()
    }
    for name, tensor in teacher.tower.model.state_dict().items():
        assert torch.equal(tensor, inside[name]), name
    p = teacher.patch_size
    assert teacher(torch.randn(1, 1, 3, 2 * p, 4 * p)).patches.shape == (1, 1, 2, 4, 32)
