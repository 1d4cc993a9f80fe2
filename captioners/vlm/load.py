"""Vision-language models from folders and hub repositories: config, weights, processor, peft's adapter.

No code that comes with a model is run, and weights come from safetensors files only.
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
from captioners.pretrained import folder_of, load_model, move, read_if_there, whole_name
from captioners.resolve import SMALL_FILES
from captioners.safe_reading import PICTURES, attempt, check_numbers
from captioners.vlm.captioner import ADAPTER, OURS, VLMCaptioner
from captioners.vlm.families import FAMILIES, QwenVL
from captioners.weights import DTYPES, differences, folder_sha256, state_sha256

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MOST_PATCHES = 2**16  # of a picture; LLaVA-OneVision has 26,896


def load_vlm(
    name: str | os.PathLike,
    *,
    base: str | None = None,
    device: str = "cpu",
    dtype: str | None = "fp32",
    instruction: str | None = None,
    four_bit: bool = False,
) -> VLMCaptioner:
    """Loads a captioner from a folder with a transformers config, one with peft's adapter, or a hub repository.

    base: the model under an adapter, where it is not the one that the adapter's config names, or lies on this machine.
    dtype: fp32, bf16 or fp16; None: weights as their file has them, adapters in float32.
    instruction: what to ask of the model; None: what it was saved with, or the family's own.
    four_bit: the weights in 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314), for which bitsandbytes is needed.
    Weights come from safetensors files only, and no code that comes with a model is run.
    Raises ValueError where the model is of no family that can caption, or files are missing, broken, or do not fit.
    """
    problems = [] if dtype in (*DTYPES, None) else [f"dtype {dtype!r} is none of {', '.join(DTYPES)}"]
    if four_bit and not is_bitsandbytes_available():
        problems.append("four_bit needs bitsandbytes, which is not installed")
    if problems:
        raise ValueError("; ".join(problems))
    name, base = whole_name(name), base and whole_name(base)
    folder = folder_of(name, *SMALL_FILES, "*.jinja", ADAPTER_WEIGHTS)
    ours = _read_ours(folder)
    adapter_config = read_if_there(folder / ADAPTER)
    if adapter_config is None and base is not None:
        raise ValueError(f"{name}: base {base} is for adapters, and there are none in it")
    beneath = name if adapter_config is None else base or _base_name(adapter_config, folder / ADAPTER, ours)
    model = _load_model(beneath, device, DTYPES[dtype or "fp32"], four_bit)
    home = (
        folder
        if adapter_config is not None and any((folder / file).is_file() for file in PROCESSOR_FILES)
        else beneath
    )
    processor = attempt(
        f"{home}: no processor that can be loaded", AutoProcessor.from_pretrained, home, trust_remote_code=False
    )
    _check_processor(processor, model, home)
    adapter = None if adapter_config is None else _load_adapter(model, folder, beneath)
    sha256 = state_sha256(model.state_dict())
    if not four_bit:
        move(model, device, DTYPES[dtype] if dtype else None)
    return VLMCaptioner(
        model.eval(),
        processor,
        name=ours.get("name") or column_name(Path(name).name),
        weights_sha256=sha256,
        source=name,
        instruction=ours.get("instruction") if instruction is None else instruction,
        adapter=adapter,
    )


def _load_model(name: str, device: str, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
    """The model in the dtype of its file, or in 4 bits."""

    def check(config: PreTrainedConfig) -> None:
        if config.model_type not in FAMILIES:
            raise ValueError(f"{name}: model_type {config.model_type!r} is none of {', '.join(FAMILIES)}")
        if config.model_type == "blip-2" and not config.use_decoder_only_language_model:
            raise ValueError(
                f"{name}: text_config.model_type {config.text_config.model_type!r} is not of a decoder, as 'opt' is"
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
        for layer in layers:  # bitsandbytes' would pack their weights anew to caption on a CPU, and train no more
            layer.support_avx512bf16_for_cpu = False
    return model


def _check_processor(processor: ProcessorMixin, model: PreTrainedModel, where: str | Path) -> None:
    """Refuses a processor whose pictures or prompts would take memory without end."""
    images = processor.image_processor.to_dict()
    if issubclass(FAMILIES[model.config.model_type], QwenVL):
        images.pop("size", None)  # counts the pixels of a picture, which the family bounds
    whole = {**processor.to_dict(), "image_processor": images, "video_processor": {}}
    check_numbers(whole, where, PICTURES)
    side = max(_numbers([images.get(name) for name in ("size", "crop_size", "image_grid_pinpoints")]), default=1)
    patch = max(1, min(_numbers([whole.get("patch_size"), images.get("patch_size")]), default=side))
    if (patches := (side / patch) ** 2) > MOST_PATCHES:
        raise ValueError(
            f"{where}: its processor makes {patches:,.0f} patches of a picture, at most {MOST_PATCHES:,} can be"
        )


def _numbers(value: Any) -> list[int]:
    """All numbers in a part of a config."""
    if isinstance(value, Mapping | list | tuple):
        return [
            number for part in (value.values() if isinstance(value, Mapping) else value) for number in _numbers(part)
        ]
    return [value] if isinstance(value, int) else []


def _load_adapter(model: PreTrainedModel, folder: Path, base: str) -> PeftModel:
    """Puts the adapter of a folder into the model; all of its weights, and no others."""
    path = folder / ADAPTER_WEIGHTS
    weights = attempt(f"{path}: no adapter that can be read", load_file, path)
    adapter = attempt(
        f"{folder}: an adapter that does not fit its model",
        PeftModel.from_pretrained,
        model,
        folder,
        is_trainable=True,
        torch_device="cpu",
    )
    if different := differences(weights, get_peft_model_state_dict(adapter, save_embedding_layers=False)):
        raise ValueError(f"{path}: these weights are not this adapter's:\n  " + "\n  ".join(different))
    adapter.peft_config["default"].base_model_name_or_path = base
    return adapter


def _base_name(config: dict, path: Path, ours: dict) -> str:
    """The model under an adapter; one on this machine only where we wrote so, as a stranger's file may name any folder."""
    base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    problems = [] if kind == "LORA" else [f"peft_type is {kind!r}, not 'LORA'"]
    if not isinstance(base, str) or not base:
        problems.append(f"base_model_name_or_path is {base!r}, no model's name")
    elif os.path.isdir(base) and ours.get("base_sha256") != folder_sha256(Path(base)):
        problems.append(
            f"base_model_name_or_path is {base}, a folder here, and not as it was when the adapter was trained; "
            f"if it is to be read, say --base {base}"
        )
    if problems:
        raise ValueError(f"{path}: " + "; ".join(problems))
    return str(base)


def _read_ours(folder: Path) -> dict[str, Any]:
    """Our own file beside a model, {} where there is none: its `name`, its `instruction`, the hash of an adapter's base."""
    ours = read_if_there(folder / OURS)
    if ours is None:
        return {}
    ours = {"instruction": ours.get("prompt")} | ours  # as it was called until 0.2
    problems = [
        f"{key} is {ours.get(key)!r}, no text" for key in ("name", "instruction") if not isinstance(ours.get(key), str)
    ]
    if problems:
        raise ValueError(f"{folder / OURS}: " + "; ".join(problems))
    attempt(folder / OURS, check_name, ours["name"])
    return ours
