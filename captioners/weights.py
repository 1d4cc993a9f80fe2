"""Weights: the dtypes that a model may have, files of tensors read safely, and the hash that names them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, by name; nothing in the file can run code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; none may pass as another fault
        raise ValueError(f"{path}: not a file of weights that can be read safely: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"{path}: holds no tensors by name")
    return state


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in float32, with their names and shapes, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy())
    return digest.hexdigest()
