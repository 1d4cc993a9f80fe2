"""Weights of models: their dtypes, reading files of tensors safely, comparing, checking and hashing them."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from imagetext.shown import reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Keys under which trainers store the weights, in order of preference: averaged weights first.
WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
LISTED = 3  # most names, and differences of one kind in one part of a model, that are listed singly
ENDS = 2**20  # bytes at the start, and at the end, of a file that `folder_sha256` reads
PREFIXES = ("module.", "model.")  # added to names by DistributedDataParallel, and by Lightning and others


class WithoutDrawing(TorchFunctionMode):
    """A context in which models are built without random weights, for models whose weights are all read from a file.

    The functions of torch.nn.init leave their tensors as they are, and torch.randn gives zeros: for large models,
    drawing takes many seconds. On the meta device, where tensors have a shape but no values, some operations would
    import a large library, and those that keep the shape are not done either.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.randn:
            return torch.zeros(*args, **kwargs)
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if function in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if function in (Tensor.mul, Tensor.triu_) and args[0].is_meta and not isinstance(args[1], Tensor):
            return args[0]
        return function(*args, **kwargs)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or torch file, by their names in the model; nothing in the file can run code.

    Wrappings of trainers are removed: mappings such as `state_dict` or `model` around the weights (averaged weights,
    `state_dict_ema`, are preferred), and the prefixes `module.`, `model.` and torch.compile's `_orig_mod.`.
    Raises ValueError if the file cannot be read safely, or has no named tensors, or two of one name.
    """
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise errors of many types
        raise ValueError(f"{path}: not a file of weights that can be read safely: {reason(error)}") from error
    while isinstance(state, Mapping) and (
        wrapper := next((name for name in WITHIN if isinstance(state.get(name), Mapping)), None)
    ):
        state = state[wrapper]
    keys: dict[str, str] = {}  # name in the model -> key in the file
    for key, value in state.items() if isinstance(state, Mapping) else ():
        if isinstance(key, str) and isinstance(value, Tensor):
            name = _without_prefixes(key)
            if name in keys:
                raise ValueError(f"{path}: holds {name} twice, as {keys[name]} and {key}")
            keys[name] = key
    if not keys:
        raise ValueError(f"{path}: holds no named tensors")
    return {name: state[key] for name, key in keys.items()}


def _without_prefixes(key: str) -> str:
    """A tensor's name without the prefixes that trainers add."""
    key = key.replace("_orig_mod.", "")
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe how tensors differ from the expected ones in names, shapes, and whether their numbers are integers.

    Returns a line for each difference, but one line for all differences of a kind and part if there are many.
    """
    problems: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, value in expected.items():
        if key not in state:
            problems["missing", _part(key)].append(f"missing {key}")
        elif state[key].shape != value.shape:
            problems["of another shape", _part(key)].append(
                f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
            )
        elif value.is_floating_point() and not state[key].is_floating_point():
            problems["of another dtype", _part(key)].append(f"{key} has dtype {state[key].dtype}, not {value.dtype}")
    for key in state:
        if key not in expected:
            problems["unexpected", _part(key)].append(f"unexpected {key}")
    described: list[str] = []
    for (kind, part), lines in problems.items():
        if len(lines) <= LISTED:
            described += lines
        else:
            described.append(f"{len(lines):,} of {part} are {kind}, such as: {lines[0]}")
    return described


def _part(key: str) -> str:
    """The part of a model that a tensor belongs to, such as `visual.*`."""
    first, dot, _ = key.partition(".")
    return f"{first}.*" if dot else "the model itself"


def fit_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of one element, such as `logit_scale`, the expected shape: files have () or (1,)."""
    return {
        key: value.reshape(expected[key].shape)
        if key in expected and value.numel() == expected[key].numel() == 1
        else value
        for key, value in state.items()
    }


def non_finite(weights: Mapping[str, Any]) -> list[str]:
    """The names of the tensors that hold a number that is not finite; those on the meta device hold none."""
    names = []
    for name, weight in weights.items():
        holds_floats = isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta
        if holds_floats and not bool(torch.isfinite(weight).all()):
            names.append(name)
    return names


def check_finite(model: nn.Module, where: str | Path) -> None:
    """Raise ValueError if a model has weights that are not finite, as after a training that went wrong."""
    if names := non_finite(dict(model.named_parameters())):
        raise ValueError(f"{where}: {len(names)} of its weights hold numbers that are not finite: {first_few(names)}")


def check_floats(model: nn.Module, path: Path) -> None:
    """Raise ValueError if a safetensors file has integers for a model's weights, which torch would convert."""
    if path.suffix != ".safetensors":
        return
    weights = dict(model.named_parameters())
    with safe_open(path, "pt") as file:
        names = [
            name
            for name in file.keys()
            if name in weights and not file.get_slice(name).get_dtype().startswith(("F", "BF"))
        ]
    if names:
        raise ValueError(f"{path}: {len(names)} of its weights are integers: {first_few(names)}")


def first_few(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors, converted to float32, with their names and shapes, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        value = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy().data)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """A quick SHA-256 of a model's folder: of its config, and of the size and both ends of each file of weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors")]):
        with open(path, "rb") as file:
            ends = file.read(ENDS)
            size = file.seek(0, 2)
            file.seek(max(0, size - ENDS))
            digest.update(f"{path.name} {size}\n".encode() + ends + file.read())
    return digest.hexdigest()
