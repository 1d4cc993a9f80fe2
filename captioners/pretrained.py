"""Models of transformers from folders and hub repositories: their files, within bounds, and their weights.

No code that comes with a model is run, and weights come from safetensors files only.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from captioners.safe_reading import attempt, check_folder, check_numbers, check_size, read_object
from captioners.weights import differences

WEIGHTS = ("model.safetensors", "model-*.safetensors")


def whole_name(name: str | os.PathLike) -> str:
    """A model's name without the prefix of its kind, of a folder its whole path: adapters are saved with that of their base."""
    name = os.fspath(name).removeprefix("local-dir:").removeprefix("hf-hub:")
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def folder_of(name: str, *patterns: str) -> Path:
    """Where a model's files lie, in a folder, or fetched in the hub's cache; ValueError where a small one is too large."""
    if os.path.isdir(name):
        folder = Path(name)
    else:
        folder = Path(
            attempt(
                f"hub repository {name!r} cannot be had",
                snapshot_download,
                name,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
        )
    check_folder(folder)
    return folder


def load_model(name: str, auto: Any, check: Callable[[PreTrainedConfig], None], **options) -> PreTrainedModel:
    """The model in the dtype of its file, by one of transformers' auto classes; not one weight may be missing.

    check: raises ValueError where the config is not one that is wanted.
    """
    if os.path.isdir(name):
        check_folder(Path(name))
    if (raw := read_if_there(Path(name) / "config.json")) is not None:
        check_numbers(raw, Path(name) / "config.json")
    config = attempt(f"{name}: no config that can be read", AutoConfig.from_pretrained, name, trust_remote_code=False)
    check_numbers(config.to_dict(), name)
    check(config)
    with torch.device("meta"):  # weights without memory: they would be made before one is read
        shapes = attempt(f"{name}: no model that can be built", auto.from_config, config)
    check_size(shapes, folder_of(name, *WEIGHTS).glob("*.safetensors"), name)
    model, report = attempt(
        f"{name}: no weights that can be loaded",
        auto.from_pretrained,
        name,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name}: these weights are missing:\n  " + "\n  ".join(differences({}, dict.fromkeys(missing, Tensor())))
        )
    return model


def move(model: nn.Module, device: str, dtype: torch.dtype | None) -> None:
    """Puts a model on a device, its weights in a dtype where one is given: rotary embeddings need their buffers in float32."""
    for parameter in model.parameters() if dtype is not None else ():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    model.to(device)


def read_if_there(path: Path) -> dict | None:
    """A JSON object in a file, None where there is no file."""
    return read_object(path) if path.is_file() else None
