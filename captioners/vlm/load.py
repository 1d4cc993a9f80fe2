"""Load vision-language models from folders and hub repositories: config, weights, processor, peft's adapter.

Code that comes with a model is never run, and weights are read from safetensors files only.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_bitsandbytes_available

from captioners.names import check_name, column_name
from captioners.pretrained import base_model_name, folder_of, load_model, move, read_if_there
from captioners.resolve import SMALL_FILES
from captioners.safe_reading import PICTURES, attempt, check_numbers
from captioners.vlm.captioner import ADAPTER, OURS, VLMCaptioner
from captioners.vlm.families import FAMILIES, QwenVL
from captioners.weights import DTYPES, check_finite, differences, folder_sha256, state_sha256

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_PATCHES = 2**16  # most patches of a picture; LLaVA-OneVision makes 26,896


def load_vlm(
    name: str | os.PathLike,
    *,
    base: str | None = None,
    device: str = "cpu",
    dtype: str | None = "fp32",
    instruction: str | None = None,
    four_bit: bool = False,
) -> VLMCaptioner:
    """Load a captioner from a folder or hub repository with a transformers config or peft's adapter.

    base: the base model of an adapter, if it is a local folder or is not the one that the adapter's config names.
    dtype: fp32, bf16 or fp16; None: weights in the dtype of their file, adapters in float32.
    instruction: the default instruction; None: the one saved with the model, or the family's.
    four_bit: quantise the weights to 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314); needs bitsandbytes.
    Raises ValueError if the model belongs to no supported family, or files are missing, broken, or do not fit.
    """
    problems = [] if dtype in (*DTYPES, None) else [f"dtype {dtype!r} is none of {', '.join(DTYPES)}"]
    if four_bit and not is_bitsandbytes_available():
        problems.append("four_bit needs bitsandbytes, which is not installed")
    if problems:
        raise ValueError("; ".join(problems))
    name, base = base_model_name(name), base and base_model_name(base)
    folder = folder_of(name, *SMALL_FILES, "*.jinja", ADAPTER_WEIGHTS)
    ours = _read_ours(folder)
    adapter_config = read_if_there(folder / ADAPTER)
    if adapter_config is None and base is not None:
        raise ValueError(f"{name}: base {base} is only for adapters, and {name} contains none")
    if adapter_config is None:
        model_name = name
    else:
        model_name = base or _base_name(adapter_config, folder / ADAPTER, ours)
    model = _load_model(model_name, device, DTYPES[dtype or "fp32"], four_bit=four_bit)
    has_processor = any((folder / file).is_file() for file in PROCESSOR_FILES)
    processor_source = folder if adapter_config is not None and has_processor else model_name
    processor = attempt(
        f"{processor_source}: cannot load its processor",
        AutoProcessor.from_pretrained,
        processor_source,
        trust_remote_code=False,
    )
    _check_processor(processor, model, processor_source)
    adapter = None if adapter_config is None else _load_adapter(model, folder, model_name)
    sha256 = state_sha256(model.state_dict())
    if not four_bit:
        move(model, device, DTYPES[dtype] if dtype else None)
    check_finite(model, name)
    return VLMCaptioner(
        model.eval(),
        processor,
        name=ours.get("name") or column_name(Path(name).name),
        weights_sha256=sha256,
        source=name,
        instruction=ours.get("instruction") if instruction is None else instruction,
        adapter=adapter,
    )


def _load_model(name: str, device: str, dtype: torch.dtype, *, four_bit: bool) -> PreTrainedModel:
    """Load a model in the dtype of its file, or in 4 bits with computations in `dtype`."""

    def check(config: PreTrainedConfig) -> None:
        if config.model_type not in FAMILIES:
            raise ValueError(f"{name}: model_type {config.model_type!r} is none of {', '.join(FAMILIES)}")
        if config.model_type == "blip-2" and not config.use_decoder_only_language_model:
            raise ValueError(
                f"{name}: text_config.model_type {config.text_config.model_type!r} is not a decoder like 'opt'"
            )

    options: dict[str, Any] = {}
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
        options["device_map"] = {"": device}
    model = load_model(name, AutoModelForImageTextToText, check, **options)
    if four_bit:
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        layers: Any = model.modules()
        for layer in layers:
            # otherwise bitsandbytes would repack weights for captioning on a CPU, and they could not be trained
            layer.support_avx512bf16_for_cpu = False
    return model


def _check_processor(processor: ProcessorMixin, model: PreTrainedModel, where: str | Path) -> None:
    """Raise ValueError if a processor's pictures or prompts could take unbounded memory."""
    images = processor.image_processor.to_dict()
    if issubclass(FAMILIES[model.config.model_type], QwenVL):
        images.pop("size", None)  # a number of pixels, which the family bounds
    config = {**processor.to_dict(), "image_processor": images, "video_processor": {}}
    check_numbers(config, where, PICTURES)
    side = max(_numbers([images.get(name) for name in ("size", "crop_size", "image_grid_pinpoints")]), default=1)
    patch = max(1, min(_numbers([config.get("patch_size"), images.get("patch_size")]), default=side))
    if (patches := (side / patch) ** 2) > MOST_PATCHES:
        raise ValueError(
            f"{where}: its processor makes {patches:,.0f} patches of a picture, at most {MOST_PATCHES:,} are allowed"
        )


def _numbers(value: Any) -> list[int]:
    """All integers in a part of a config, at any depth."""
    if isinstance(value, int):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [number for part in value for number in _numbers(part)]


def _load_adapter(model: PreTrainedModel, folder: Path, base: str) -> PeftModel:
    """Add the adapter in a folder to the model; ValueError if any of its weights is missing or unexpected."""
    path = folder / ADAPTER_WEIGHTS
    weights = attempt(f"{path}: cannot read the adapter", load_file, path)
    adapter = attempt(
        f"{folder}: the adapter does not fit its base model {base}",
        PeftModel.from_pretrained,
        model,
        folder,
        is_trainable=True,
        torch_device="cpu",
    )
    if different := differences(weights, get_peft_model_state_dict(adapter, save_embedding_layers=False)):
        raise ValueError(f"{path}: these weights do not fit the adapter's config:\n  " + "\n  ".join(different))
    adapter.peft_config["default"].base_model_name_or_path = base
    return adapter


def _base_name(config: dict, path: Path, ours: dict) -> str:
    """The base model that an adapter's config names.

    A local folder is accepted only if our own file confirms it by its hash, because an adapter that is not trusted
    could name any folder.
    """
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    problems = [] if kind == "LORA" else [f"peft_type is {kind!r}, not 'LORA'"]
    if not isinstance(base, str) or not base:
        problems.append(f"base_model_name_or_path is {base!r}, which is not a model's name")
    elif os.path.isdir(base) and ours.get("base_sha256") != folder_sha256(Path(base)):
        problems.append(
            f"base_model_name_or_path is {base}, a local folder that is not as it was when the adapter was trained;"
            f" to use it nevertheless, say --base {base}"
        )
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return str(base)


def _read_ours(folder: Path) -> dict[str, Any]:
    """Read capsmith's own file beside a model: `name`, `instruction`, and `base_sha256` of an adapter's base model.

    {} if there is no such file.
    """
    ours = read_if_there(folder / OURS)
    if ours is None:
        return {}
    ours = {"instruction": ours.get("prompt")} | ours  # `instruction` was called `prompt` before version 0.2
    problems = [
        f"{key} is {ours.get(key)!r}, which is not a text"
        for key in ("name", "instruction")
        if not isinstance(ours.get(key), str)
    ]
    if problems:
        raise ValueError(f"{folder / OURS}: " + "; ".join(problems))
    attempt(folder / OURS, check_name, ours["name"])
    return ours
