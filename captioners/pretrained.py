"""Load models of transformers from folders and hub repositories, within bounds of size.

Code that comes with a model is never run, and weights are read from safetensors files only.
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


def base_model_name(name: str | os.PathLike) -> str:
    """Remove the prefixes `local-dir:` and `hf-hub:` from a model's name, and make a folder's path absolute.

    Saved adapters contain the result as the name of their base model.
    """
    name = os.fspath(name).removeprefix("local-dir:").removeprefix("hf-hub:")
    return str(Path(name).resolve()) if os.path.isdir(name) else name


def folder_of(name: str, *patterns: str) -> Path:
    """Return the local folder of a model's files, after fetching those of a hub repository that match the patterns.

    Raises ValueError if the repository cannot be fetched, or a config, template or tokenizer file is too large.
    """
    if os.path.isdir(name):
        folder = Path(name)
    else:
        folder = Path(
            attempt(
                f"hub repository {name!r} cannot be fetched",
                snapshot_download,
                name,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"],
            )
        )
    check_folder(folder)
    return folder


def load_model(name: str, auto: Any, check: Callable[[PreTrainedConfig], None], **options) -> PreTrainedModel:
    """Load a model in the dtype of its file; raise ValueError if it cannot be loaded or any weight is missing.

    auto: the auto class of transformers that builds the model.
    check: a function that raises ValueError if the config is not supported.
    """
    if os.path.isdir(name):
        check_folder(Path(name))
    if (raw := read_if_there(Path(name) / "config.json")) is not None:
        check_numbers(raw, Path(name) / "config.json")
    config = attempt(f"{name}: cannot read its config", AutoConfig.from_pretrained, name, trust_remote_code=False)
    check_numbers(config.to_dict(), name)
    check(config)
    with torch.device("meta"):  # check the size before from_pretrained allocates any memory
        meta_model = attempt(f"{name}: cannot build its model", auto.from_config, config)
    check_size(meta_model, folder_of(name, *WEIGHTS).glob("*.safetensors"), name)
    model, report = attempt(
        f"{name}: cannot load its weights",
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
    """Move a model to a device, and convert its parameters to a dtype if one is given.

    Buffers keep their dtype, because rotary embeddings need theirs in float32.
    """
    if dtype is not None:
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    model.to(device)


def read_if_there(path: Path) -> dict | None:
    """The JSON object in a file, or None if there is no such file."""
    return read_object(path) if path.is_file() else None
