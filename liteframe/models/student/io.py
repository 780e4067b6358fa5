"""The folder of a saved encoder: config.json, model.safetensors, preprocessor_config.json.

Travels inside exported models.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from liteframe.files import write_atomically, write_json
from liteframe.models.student.config import MODEL_TYPE, LiteFrameConfig
from liteframe.texts import read_json

WEIGHTS = "model.safetensors"


def write_encoder(folder: Path, config: LiteFrameConfig, weights: dict[str, Tensor]) -> None:
    """Write the three files, each of them complete or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / "preprocessor_config.json", preprocessor_dict(config))
    write_json(folder / "config.json", config.to_dict())


def preprocessor_dict(config: LiteFrameConfig) -> dict[str, Any]:
    """Preprocessing in the vocabulary of Hugging Face image processors (resample 3 is bicubic), plus `resize`.

    Where that is "aspect", `size` is the budget of pixels, and `multiple` what the sides are multiples of.
    """
    multiple = {"multiple": list(config.pixel_multiple)} if config.resize == "aspect" else {}
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": config.image_size, "width": config.image_size},
        "resample": 3,
        "resize": config.resize,
        **multiple,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def read_config(folder: Path) -> LiteFrameConfig:
    """The configuration of an encoder folder; its weights are not read.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is no JSON object, or not a LiteFrame encoder's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: {folder} is not a folder written by save_pretrained")
    values = read_json(path, "copy the folder again")
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    if "model_type" not in values:
        raise ValueError(f"{path} has no model_type; a LiteFrame encoder has {MODEL_TYPE!r}")
    try:
        return LiteFrameConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights(folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an encoder folder, on the CPU, as they were saved.

    Args:
        folder: of the encoder.
        expected: tensors of the names and shapes that its config implies.

    Raises:
        FileNotFoundError: there is no weight file.
        ValueError: it is damaged, or does not hold exactly what is expected.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the encoder's weights are expected there")
    try:
        with safe_open(path, framework="pt") as file:
            # Tensors of a mapped file change when somebody copies another file over it: own them.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not a safetensors file ({error}); copy or export it again") from error
    if problems := weight_misfits(weights, expected):
        raise ValueError(f"{path} does not fit its config.json: {problems}")
    return weights


def weight_misfits(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """What is missing, unexpected or of another shape in `weights`; empty if they fit exactly."""
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in expected]
    problems += [
        f"{name} has shape {list(weights[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected
        if name in weights and weights[name].shape != expected[name].shape
    ]
    return "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
