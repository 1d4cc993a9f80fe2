"""Find the config and weights that a captioner's name stands for. No model is built, and weights are fetched last."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioners.names import check_name, column_name
from captioners.safe_reading import check_folder, check_inside, check_numbers, read_object
from imagetext.shown import reason

SHIPPED = Path(__file__).parent / "models"
CLIP_CONFIG = "open_clip_config.json"
# In open_clip's order of preference. A file of any other name is used only if it is the only file of weights.
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pt",
    "pytorch_model.bin",
)
PICKLED = (".pt", ".pth", ".bin")
SMALL_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class CaptionerSource:
    """A captioner's name, its open_clip config, and the file of its weights."""

    name: str
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]  # empty if the source has none
    weights: Path | None  # None if the source has none
    folder: Path | None  # folder with the tokenizer's files; None for an architecture of open_clip
    config_from: str  # where the config was read, for messages
    preprocess_from: str  # where preprocess_cfg was read, for messages; empty if there is none


def resolve(name: str, pretrained: str | None = None) -> CaptionerSource:
    """Find the source of a CoCa captioner.

    name: a shipped model, an open_clip architecture, a local folder or file, or a hub repository.
    Raises ValueError if nothing has that name, the config is not a causal CoCa's, or it is unclear which file to use.
    """
    import open_clip  # late: it imports torch

    architecture = name.replace("/", "-")
    if architecture in open_clip.list_models():
        return _from_architecture(architecture, pretrained)
    if pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} goes with an open_clip architecture only, and {name!r} is none")
    if name in shipped_models():
        return _from_folder(SHIPPED / name, name)
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _from_folder(path, str(path))
    if path.is_file():
        return _from_folder(path.parent, str(path), weights=path)
    if repository := _hub_repository(name):
        return _from_hub(repository)
    built_in = [model for model in shipped_models() if _from_folder(SHIPPED / model, model).weights]
    coca = [model for model in open_clip.list_models() if "coca" in model]
    raise ValueError(
        f"no captioner {name!r}: it is not a built-in captioner ({', '.join(built_in)}), not an open_clip"
        f" architecture ({', '.join(coca)}), not a file or folder, and not the org/name of a hub repository"
    )


def is_transformers(name: str) -> bool:
    """Whether a folder or hub repository holds a transformers model, or a peft adapter for one.

    Only small files are read or fetched. False for a broken config, so that `resolve` reports the fault.
    Raises ValueError if a hub repository cannot be fetched.
    """
    folder = Path(name.removeprefix("local-dir:"))
    if not folder.is_dir():
        import open_clip  # late: it imports torch

        repository = _hub_repository(name)
        if repository is None or name.replace("/", "-") in open_clip.list_models():
            return False
        folder = fetch(repository, *SMALL_FILES)
    if (folder / "adapter_config.json").is_file():
        return True
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):
        return False
    return not (folder / CLIP_CONFIG).is_file() and _is_transformers_config(config)


def shipped_models() -> list[str]:
    """The names of the captioners whose configs are part of this package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / CLIP_CONFIG).is_file())


def _from_architecture(architecture: str, pretrained: str | None) -> CaptionerSource:
    """The source of an open_clip architecture, with weights from a file or from one of open_clip's pretrained tags."""
    from open_clip.factory import get_model_config
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    model_cfg = get_model_config(architecture) or {}
    check_coca(model_cfg, f"open_clip's {architecture}")
    tag_cfg, weights = {}, None
    if pretrained is not None and os.path.isfile(pretrained):
        weights = Path(pretrained)
    elif pretrained is not None:
        tag_cfg = get_pretrained_cfg(architecture, pretrained)
        if not tag_cfg:
            tags = ", ".join(list_pretrained_tags_by_model(architecture)) or "none"
            raise ValueError(f"pretrained={pretrained!r} is neither a file nor a tag of {architecture} (tags: {tags})")
        try:
            weights = Path(download_pretrained(tag_cfg))
        except OSError as error:
            raise ValueError(
                f"{architecture}: pretrained={pretrained!r} cannot be fetched: {reason(error)}"
            ) from error
    tag = weights.stem if weights and not tag_cfg else pretrained
    return CaptionerSource(
        name=column_name(f"{architecture}_{tag}" if tag else architecture),
        model_cfg=model_cfg,
        preprocess_cfg=tag_cfg,
        weights=weights,
        folder=None,
        config_from=f"open_clip's {architecture}",
        preprocess_from=f"open_clip's tag {pretrained}" if tag_cfg else "",
    )


def _from_hub(repository: str) -> CaptionerSource:
    """The source of a hub repository, from the local cache if possible.

    The config is checked before any weights are fetched.
    """
    folder = fetch(repository, *SMALL_FILES)
    _read_config(folder, repository)
    if not list(fetch(repository, "*.safetensors").glob("*.safetensors")):
        fetch(repository, *(f"*{suffix}" for suffix in PICKLED))
    return _from_folder(folder, f"hf-hub:{repository}", name=repository.split("/")[1])


def _hub_repository(name: str) -> str | None:
    """The org/name of a hub repository that a name may stand for, or None."""
    if name.startswith(("local-dir:", ".")):
        return None
    repository = name.removeprefix("hf-hub:")
    return repository if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) else None


def fetch(repository: str, *patterns: str) -> Path:
    """Fetch the files of a hub repository that match the patterns and are not cached; return their local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository}: there is no such local folder, and hub repository {repository!r} cannot be fetched:"
            f" {reason(error)}"
        ) from error


def _from_folder(folder: Path, label: str, *, name: str | None = None, weights: Path | None = None) -> CaptionerSource:
    model_cfg, other_sections, config_path = _read_config(folder, label)
    capsmith_section = other_sections.get("capsmith", {})
    preprocess_cfg = other_sections.get("preprocess_cfg") or {}
    tokenizer_kwargs = model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    sections = {"capsmith": capsmith_section, "preprocess_cfg": preprocess_cfg, "tokenizer_kwargs": tokenizer_kwargs}
    problems = [f"{key} is not a JSON object" for key, value in sections.items() if not isinstance(value, dict)]
    if problems:
        raise ValueError(f"{config_path}: " + "; ".join(problems))
    if configured_name := capsmith_section.get("name"):
        check_name(configured_name)
    check_numbers(preprocess_cfg, config_path)
    check_folder(folder)
    check_inside(folder, tokenizer_kwargs, str(config_path))
    return CaptionerSource(
        name=configured_name or column_name(name or folder.resolve().name),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=weights or find_weights(folder),
        folder=folder,
        config_from=str(config_path),
        preprocess_from=f"preprocess_cfg in {config_path}" if preprocess_cfg else "",
    )


def _read_config(folder: Path, label: str) -> tuple[dict, dict, Path]:
    """The open_clip model config of a folder, the other sections of its file, and the file's path."""
    for path in (folder / CLIP_CONFIG, folder / "config.json"):
        if not path.is_file():
            continue
        config = read_object(path)
        if path.name == CLIP_CONFIG and "model_cfg" not in config:
            raise ValueError(f"{path}: no model_cfg")
        model_cfg = config.get("model_cfg", config)
        if not isinstance(model_cfg, dict):
            raise ValueError(f"{path}: model_cfg is not a JSON object")
        if path.name == "config.json" and _is_transformers_config(config):
            raise ValueError(
                f"{label}: holds a transformers model, which takes neither `pretrained` nor `from_scratch`"
            )
        check_coca(model_cfg, str(path))
        other_sections = config if model_cfg is not config else {}
        return model_cfg, other_sections, path
    raise ValueError(f"{label}: contains neither open_clip_config.json nor config.json")


def _is_transformers_config(config: Mapping[str, Any]) -> bool:
    model_cfg = config.get("model_cfg", config)
    return (
        isinstance(model_cfg, dict)
        and "embed_dim" not in model_cfg
        and bool({"model_type", "architectures"} & set(config))
    )


def find_weights(folder: Path) -> Path | None:
    """The file of weights in a folder, preferably safetensors, or None if the folder has none.

    Raises ValueError if there are several files and none has a usual name.
    """
    for suffixes in ((".safetensors",), PICKLED):
        files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
        usual_files = [path for path in files if path.name in WEIGHT_NAMES]
        if usual_files:
            return min(usual_files, key=lambda path: WEIGHT_NAMES.index(path.name))
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(
                f"{folder}: may hold its weights in {' or '.join(path.name for path in files)}; leave one there"
            )
    return None


def check_coca(model_cfg: Mapping[str, Any], where: str) -> None:
    """Raise ValueError, with every reason, if a config is not that of a CoCa with a causal text tower."""
    problems = []
    sections = {}
    for section in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        sections[section] = model_cfg.get(section)
        if not isinstance(sections[section], Mapping):
            problems.append(
                f"{section} is missing: not a CoCa" if sections[section] is None else f"{section} is not a JSON object"
            )
    if "embed_dim" not in model_cfg:
        problems.append("embed_dim is missing")
    if not problems:
        problems = _number_problems(model_cfg["embed_dim"], sections)
    if not problems:
        problems = _tower_problems(model_cfg["embed_dim"], **sections)
    if problems:
        raise ValueError(f"{where}: not a CoCa that can caption: " + "; ".join(problems))


def _number_problems(embed_dim: Any, sections: Mapping[str, Mapping]) -> list[str]:
    numbers = {"embed_dim": embed_dim}
    for section, cfg in sections.items():
        for key in ("width", "layers", "heads", "vocab_size", "context_length", "patch_size"):
            if key in cfg and not isinstance(cfg[key], list):
                numbers[f"{section}.{key}"] = cfg[key]
    return [
        f"{name} is {value!r}, but must be an integer of at least 1"
        for name, value in numbers.items()
        if type(value) is not int or value < 1
    ]


def _tower_problems(embed_dim: int, vision_cfg: Mapping, text_cfg: Mapping, multimodal_cfg: Mapping) -> list[str]:
    if text_cfg.get("hf_model_name"):
        return [f"text_cfg.hf_model_name is {text_cfg['hf_model_name']}, whose text tower is not causal"]
    problems = []
    if text_cfg.get("no_causal_mask"):
        problems.append("text_cfg.no_causal_mask is set: the text tower is not causal")
    for section, cfg in (("vision_cfg", vision_cfg), ("text_cfg", text_cfg)):
        if not cfg.get("output_tokens"):
            problems.append(f"{section}.output_tokens is not set")
    if not text_cfg.get("embed_cls"):
        problems.append("text_cfg.embed_cls is not set")
    if vision_cfg.get("timm_model_name") or isinstance(vision_cfg.get("layers"), Sequence):
        problems.append("vision_cfg does not describe a vision transformer of open_clip")
    if vision_cfg.get("attentional_pool") in ("parallel", "cascade") or vision_cfg.get("pool_type") == "none":
        problems.append("vision_cfg does not pool a picture into one embedding")
    special = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    problems += [f"text_cfg.{key} is not supported" for key in special if text_cfg.get(key)]
    if text_cfg.get("block_type") not in (None, "default"):
        problems.append(f"text_cfg.block_type {text_cfg['block_type']!r} is not supported")
    width = multimodal_cfg.get("width", 512)
    if text_cfg.get("width", 512) != width:
        problems.append(f"text_cfg.width {text_cfg.get('width', 512)} differs from multimodal_cfg.width {width}")
    image_width = embed_dim if vision_cfg.get("attentional_pool") else vision_cfg.get("width", 768)
    if image_width != width:
        problems.append(f"image tokens have width {image_width}, but multimodal_cfg.width is {width}")
    return problems
