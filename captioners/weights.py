"""Weights: the dtypes that a model may have, files of tensors read safely, and the hash that names them."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from imagetext.shown import reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# where trainers put them, averaged first
WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
LISTED = 3  # differences of one kind in one part of a model, of more there is a sum
ENDS = 2**20  # bytes
PREFIXES = ("module.", "model.")  # of DistributedDataParallel, and of Lightning and others


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors or torch file, by the model's own names for them; nothing in the file can run code.

    What trainers put round them goes: `state_dict`, `model`, averaged weights (`state_dict_ema`, which come first where there
    are both), and the prefixes `module.`, `model.` and torch.compile's `_orig_mod.`.
    """
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds; none may pass as another fault
        raise ValueError(f"{path}: not a file of weights that can be read safely: {reason(error)}") from error
    while isinstance(state, Mapping) and (
        name := next((name for name in WITHIN if isinstance(state.get(name), Mapping)), None)
    ):
        state = state[name]
    names: dict[str, str] = {}
    for key, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(key, str) and isinstance(value, Tensor):
            if (name := _plain(key)) in names:
                raise ValueError(f"{path}: holds {name} twice, as {names[name]} and {key}")
            names[name] = key
    if not names:
        raise ValueError(f"{path}: holds no tensors by name")
    return {name: state[key] for name, key in names.items()}


def _plain(key: str) -> str:
    """A tensor's name without what trainers put before it."""
    key = key.replace("_orig_mod.", "")
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How tensors differ from those of a model, in names and shapes: a line each, or for many of one part of the model."""
    problems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, value in expected.items():
        if key not in state:
            problems["missing", _part(key)].append(f"missing {key}")
        elif state[key].shape != value.shape:
            problems["of another shape", _part(key)].append(
                f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
    for key in state:
        if key not in expected:
            problems["unexpected", _part(key)].append(f"unexpected {key}")
    return [
        line
        for (kind, part), lines in problems.items()
        for line in (lines if len(lines) <= LISTED else [f"{len(lines):,} of {part} are {kind}, such as: {lines[0]}"])
    ]


def _part(key: str) -> str:
    """The part of a model that a tensor is of, as `visual.*`."""
    first, dot, _ = key.partition(".")
    return f"{first}.*" if dot else "the model itself"


def fit_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, single numbers such as `logit_scale` in the shape that the model has them in: some write (), some (1,)."""
    return {
        key: value.reshape(expected[key].shape)
        if key in expected and value.numel() == expected[key].numel() == 1
        else value
        for key, value in state.items()
    }


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors in float32, with their names and shapes, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """SHA-256 by which a model's folder is known again, quickly: of its config, and of the size and both ends of its weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        with open(path, "rb") as file:
            ends = file.read(ENDS)
            size = file.seek(0, 2)
            file.seek(max(0, size - ENDS))
            digest.update(f"{path.name} {size}\n".encode() + ends + file.read())
    return digest.hexdigest()
