"""A trained encoder as a Hugging Face model folder with its own code."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from liteframe.data.preprocess import FrameTransform
from liteframe.files import write_json
from liteframe.models.student.config import LiteFrameConfig
from liteframe.models.student.elastic import load_one_mode
from liteframe.models.student.encoder import LiteFrameEncoder
from liteframe.models.student.io import preprocessor_dict
from liteframe.models.vlm.vision import LiteFrameVisionConfig, LiteFrameVisionModel
from liteframe_export import card, verify
from liteframe_export.bundle import bundle, file_name, load_bundle
from liteframe_export.files import add_auto_map, save_weights, staged
from liteframe_export.provenance import run_report

MODEL, OWN_PROCESSORS = "liteframe.models.vlm.vision", "liteframe_export.video_processor"


def export_encoder(
    encoder_dir: str | os.PathLike[str], out: str | os.PathLike[str], *, mode: str | None = None
) -> dict[str, Any]:
    """Write an encoder as a folder that `AutoModel.from_pretrained(out, trust_remote_code=True)` loads.

    The library is not needed there: its code travels in the folder, kernels too.

    Args:
        encoder_dir: what LiteFrameEncoder.save_pretrained wrote (a run's `encoder/`). The run's report.json, if it
            is there, goes into the model card.
        out: the new folder.
        mode: of an elastic encoder, which is exported in one alone.

    Returns:
        The parity report, also saved as parity.json.

    Raises:
        FileNotFoundError, ValueError: `encoder_dir` is no encoder or an elastic one without a mode, `out` exists, or
            the reloaded export computes something else than the encoder; then nothing is written.
    """
    with staged(out) as folder:
        encoder = load_one_mode(encoder_dir, mode)
        save_encoder(encoder, folder)
        parity = check_encoder(encoder, folder)
        write_json(folder / "parity.json", parity)
        parameters = sum(parameter.numel() for parameter in encoder.parameters())
        report = run_report(Path(encoder_dir).resolve().parent)
        text = card.encoder_card(Path(out).name, encoder.config, parameters, report, parity)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return parity


def save_encoder(encoder: LiteFrameEncoder, folder: Path) -> None:
    """Write config, weights, preprocessing and code, in the encoder's own dtype."""
    config = LiteFrameVisionConfig(**encoder.config.to_dict())
    with torch.device("meta"):
        model = LiteFrameVisionModel(config)
    model.encoder = encoder
    save_weights(model, folder)
    bundle([MODEL] if encoder.config.resize == "squash" else [MODEL, OWN_PROCESSORS], folder)
    stem = Path(file_name(MODEL)).stem
    names = {"AutoConfig": "Config", "AutoModel": "Model"}
    add_auto_map(folder / "config.json", {auto: f"{stem}.LiteFrameVision{name}" for auto, name in names.items()})
    write_json(folder / "preprocessor_config.json", video_processor_dict(encoder.config))


def video_processor_dict(config: LiteFrameConfig) -> dict[str, Any]:
    """The encoder's preprocessing as AutoVideoProcessor reads it: transformers' own class, or one of ours."""
    values = {**preprocessor_dict(config), "do_sample_frames": False}
    del values["resize"]  # would hide the processor's method of that name
    if config.resize == "squash":
        return {**values, "video_processor_type": "InternVLVideoProcessor"}
    kind = "LiteFrameAspectVideoProcessor" if config.resize == "aspect" else "LiteFrameVideoProcessor"
    values |= {
        "video_processor_type": kind,
        "auto_map": {"AutoVideoProcessor": f"{Path(file_name(OWN_PROCESSORS)).stem}.{kind}"},
    }
    if config.resize == "aspect":
        return values
    return {
        **values,
        "size": {"shortest_edge": config.image_size},
        "do_center_crop": True,
        "crop_size": {"height": config.image_size, "width": config.image_size},
    }


def check_encoder(encoder: LiteFrameEncoder, folder: Path) -> dict[str, Any]:
    """Compare the encoder with its export in float32 on the CPU, from uint8 frames to features.

    Raises:
        ValueError: they differ by more than verify.TOLERANCE.
    """
    config, encoder = encoder.config, encoder.float().cpu().eval()
    # One frame, a length that must be padded, and a whole clip.
    videos = verify.noise_videos([1, 5, config.clip_frames], config.image_size)
    transform = FrameTransform(
        config.image_size, config.image_mean, config.image_std, config.resize, config.pixel_multiple
    )
    reloaded = verify.reload(folder, "encoder", videos)
    cases = []
    for number, frames in enumerate(videos):
        pixels = transform(frames)[None]
        with torch.inference_mode():
            features: Tensor = encoder(pixels)
        cases.append(
            {
                "frames": len(frames),
                "features": list(features.shape),
                "largest_feature": features.abs().max().item(),
                "pixel_difference": verify.difference("pixels", pixels, reloaded.outputs[f"pixels.{number}"]),
                "max_abs_difference": verify.difference("features", features, reloaded.outputs[f"features.{number}"]),
            }
        )
    return verify.report(cases, reloaded)


def exported_encoder(encoder: LiteFrameEncoder) -> nn.Module:
    """The encoder's export with its own code, in this process: [B,T,3,H,W] -> last_hidden_state [B,ceil(T/t),h,w,C].

    For comparisons of speed; a process without LiteFrame loads an export by transformers' Auto classes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_encoder(encoder, folder)
        return load_bundle(folder, MODEL).LiteFrameVisionModel.from_pretrained(folder).eval()
