"""Every YAML goes through the real entry point, two steps at a small size; only sizes and places are overridden."""

import json

import pytest
import torch
import yaml
from worlds import ROOT
from worlds.ctd import make_vlm_folder
from worlds.vlms import make_llava_onevision, make_qwen2_5_vl

from liteframe import LiteFrameConfig, LiteFrameEncoder

FOLDER = ROOT / "configs" / "ctd"
NAMES = ["internvit300m_timm", "internvl3_8b", "internvl3_8b_elastic", "internvl3_8b_small", "internvl3_8b_tiny",
         "llava_onevision_7b", "qwen2_5_vl_7b", "toy", "toy_elastic"]  # fmt: skip
SMALL = ["--trainer.max_steps", 2, "--trainer.accelerator", "cpu", "--trainer.devices", 1, "--trainer.strategy", "auto",
         "--data.batch_size", 2, "--data.micro_batch_size", 1, "--data.workers", 0, "--data.max_failure_rate", 0,
         "--model.target.statistics_clips", 2, "--trainer.val_check_interval", 1]  # fmt: skip
STUDENT = ["--model.student.dim", 32, "--model.student.heads", 4, "--model.student.mlp_dim", 64,
           "--model.student.teacher_dim", 64, "--model.student.image_size", 56,
           "--model.student.clip_frames", 4]  # fmt: skip


ABLATIONS = sorted(path.stem for path in (FOLDER / "ablations").glob("*.yaml"))
ABLATED = "internvl3_8b.yaml --config configs/ctd/ablations/"


def flat(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict) and key != "downsample":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", {int(k): v for k, v in value.items()} if isinstance(value, dict) else value


def overrides(name, tmp_path):
    if name.startswith("toy"):
        shape = {"hidden_size": 128, "num_hidden_layers": 6, "intermediate_size": 512}
        return ["--model.teacher.name", make_vlm_folder(tmp_path / "vlm", **shape)]
    if name.startswith("internvl3_8b"):
        elastic = name.endswith("elastic")  # its coarsest windows are (8,2,2) and (4,4,4)
        side = 112 if elastic else 56
        shape = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 64,
                 "image_size": [side, side], "patch_size": [14, 14]}  # fmt: skip
        larger = ["--model.student.image_size", side, "--model.student.clip_frames", 8] if elastic else []
        return [*STUDENT, *larger, "--model.teacher.name", make_vlm_folder(tmp_path / "vlm", **shape)]
    if name == "llava_onevision_7b":
        shape = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 8, "patch_size": 14}
        return [*STUDENT, "--model.teacher.name", make_llava_onevision(tmp_path / "vlm", **shape)]
    if name == "qwen2_5_vl_7b":
        shape = {"hidden_size": 64, "patch_size": 14, "window_size": 56}
        return [*STUDENT, "--model.teacher.name", make_qwen2_5_vl(tmp_path / "vlm", **shape)]
    if name == "internvit300m_timm":
        options = {"img_size": 56, "embed_dim": 64, "depth": 12, "num_heads": 8, "mlp_ratio": 1}
        return [*STUDENT, "--model.teacher.pretrained", "false", "--model.teacher.options", json.dumps(options)]
    raise AssertionError(f"say here how {name}.yaml becomes small")


def test_no_config_is_left_out():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_config_runs(name, fit, tmp_path, video_folder):
    fit("--run", tmp_path / "run", "--data.videos", video_folder, *SMALL, *overrides(name, tmp_path),
        config=FOLDER / f"{name}.yaml")  # fmt: skip
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 2
    assert "val/token_cosine" in report["figures"]


# Ablations that do not speak of the same settings go over the recipe together: a run costs a second.
TOGETHER = (
    ("attn", "rtd", "no_standardization"),
    ("attn_block", "rtd_linear", "no_clipping", "first_stride_2"),
    ("dense", "rtd_repeat", "first_stride_3", "saliency_received"),
    ("spacetime", "clips_of_4", "no_wap"),
    ("no_mixer", "spatial_only"),
    ("spatial_at_once",),
    ("plain_distillation",),
)


def test_no_ablation_is_left_out():
    assert sorted(name for names in TOGETHER for name in names) == ABLATIONS


@pytest.mark.parametrize("names", TOGETHER, ids="+".join)
def test_ablations_run(names, fit, tmp_path, video_folder):
    """A step of the main recipe with ablations over it, which change what they say and nothing else."""
    files = [FOLDER / "ablations" / f"{name}.yaml" for name in names]
    changes = [dict(flat(yaml.safe_load(file.read_text())["model"])) for file in files]
    teacher = {"img_size": 56, "embed_dim": 16, "depth": 12, "num_heads": 4, "mlp_ratio": 1}
    teacher |= {key.removeprefix("teacher.options."): value for change in changes for key, value in change.items()
                if key.startswith("teacher.options.")}  # fmt: skip
    fit(*(word for file in files for word in ("--config", file)), "--run", tmp_path / "run",
        "--data.videos", video_folder, *SMALL, "--trainer.max_steps", 1, "--data.val_fraction", 0, *STUDENT[:-2],
        "--model.student.dim", 16, "--model.student.mlp_dim", 16, "--model.student.teacher_dim", 16,
        "--model.teacher.name", "timm/vit_intern300m_patch14_448",
        "--model.teacher.pretrained", "false", "--model.teacher.options", json.dumps(teacher),
        *(() if "clips_of_4" in names else ("--model.student.clip_frames", 8)),
        config=FOLDER / "internvl3_8b.yaml")  # fmt: skip
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 1
    run, base = (
        dict(flat(yaml.safe_load(path.read_text())["model"]))
        for path in (tmp_path / "run" / "config.yaml", FOLDER / "internvl3_8b.yaml")
    )
    for change in changes:
        assert {key: run[key] for key in change} == change != {key: base.get(key) for key in change}


@pytest.mark.parametrize("name", [*NAMES, *(f"ablations/{name}" for name in ABLATIONS)])
def test_header_names_the_command(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    header = "".join(line for line in lines if line.startswith("#"))
    assert f"train_ctd.py fit --config configs/ctd/{name.replace('ablations/', ABLATED)}.yaml" in header


def by_hand(d, mlp):
    """Parameters of a 12-block student of the paper's layout, term by term."""
    patches = 3 * 14 * 14 * d + d + d + (1 + 32 * 32) * d
    attention = d * 3 * d + 3 * d + d * d + d
    block = 2 * d + attention + d + (3 * d + d) + 2 * d + (d * mlp + mlp + mlp * d + d) + d
    strided = (2 * 2 * 2 * d + d) + (2 * 1 * 1 * d + d)
    return patches + 12 * block + strided + d * 1024 + 1024


@pytest.mark.parametrize(
    ("name", "dim", "heads", "parameters"),
    [
        ("internvl3_8b", 768, 12, 87_146_752),
        ("internvl3_8b_small", 384, 6, 22_340_224),
        ("internvl3_8b_tiny", 192, 3, 5_862_208),
    ],
)
def test_presets_have_the_parameters_they_name(name, dim, heads, parameters):
    text = (FOLDER / f"{name}.yaml").read_text()
    config = LiteFrameConfig(**yaml.safe_load(text)["model"]["student"])
    assert (config.dim, config.heads, config.dim // config.heads, config.mlp_dim) == (dim, heads, 64, 4 * dim)
    with torch.device("meta"):
        student = LiteFrameEncoder(config)
    assert by_hand(dim, 4 * dim) == sum(p.numel() for p in student.parameters()) == parameters
    assert f"{parameters:,} parameters" in text
