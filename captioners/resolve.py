"""From a captioner's name to its config and weights; nothing is built, and weights are fetched last."""

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
# open_clip's own order of preference; any other name counts only when it is the only one
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
class Source:
    """Where a captioner comes from: its open_clip model config, and the file its weights are in.

    `preprocess_cfg` is empty where the source has none; `weights` is None where there are none;
    `folder` holds the tokenizer's files, where the config asks for a tokenizer of its own.
    """

    name: str
    model_cfg: Mapping[str, Any]
    preprocess_cfg: Mapping[str, Any]
    weights: Path | None
    folder: Path | None
    config_from: str
    preprocess_from: str


def resolve(name: str, pretrained: str | None = None) -> Source:
    """Finds a captioner by the name of a shipped model, an open_clip architecture, a local folder or file, or a hub repository.

    Raises ValueError where nothing of that name is found, the config is no causal CoCa's, or files are ambiguous.
    """
    import open_clip  # late: it imports torch

    architecture = name.replace("/", "-")
    if architecture in open_clip.list_models():
        return _from_architecture(architecture, pretrained)
    if pretrained is not None:
        raise ValueError(f"pretrained={pretrained!r} goes with an open_clip architecture, and {name!r} is none")
    if name in shipped_models():
        return _from_folder(SHIPPED / name, name)
    path = Path(name.removeprefix("local-dir:"))
    if path.is_dir():
        return _from_folder(path, str(path))
    if path.is_file():
        return _from_folder(path.parent, str(path), weights=path)
    if repository := _hub_repository(name):
        return _from_hub(repository)
    coca = [model for model in open_clip.list_models() if "coca" in model]
    raise ValueError(
        f"no captioner {name!r}: not one of ours ({', '.join(shipped_models())}), no open_clip architecture"
        f" ({', '.join(coca)}), no file or folder, and no org/name of a hub repository"
    )


def is_transformers(name: str) -> bool:
    """Whether a folder or hub repository holds a transformers model, or peft's adapter for one; its small files alone are read.

    Raises ValueError where a hub repository cannot be had. What is of neither kind, or broken, is left to `resolve`.
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
    """Names of the captioners whose configs come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / CLIP_CONFIG).is_file())


def _from_architecture(architecture: str, pretrained: str | None) -> Source:
    """An open_clip architecture; its weights from a file, or from one of open_clip's pretrained tags."""
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
            raise ValueError(f"pretrained={pretrained!r} is no file and no tag of {architecture} (tags: {tags})")
        try:
            weights = Path(download_pretrained(tag_cfg))
        except OSError as error:
            raise ValueError(f"{architecture}: pretrained={pretrained!r} cannot be had: {reason(error)}") from error
    tag = weights.stem if weights and not tag_cfg else pretrained
    return Source(
        name=column_name(f"{architecture}_{tag}" if tag else architecture),
        model_cfg=model_cfg,
        preprocess_cfg=tag_cfg,
        weights=weights,
        folder=None,
        config_from=f"open_clip's {architecture}",
        preprocess_from=f"open_clip's tag {pretrained}" if tag_cfg else "",
    )


def _from_hub(repository: str) -> Source:
    """A hub repository, from the cache where it is there; the config is read before any weights are fetched."""
    folder = fetch(repository, *SMALL_FILES)
    _read_config(folder, repository)
    if not list(fetch(repository, "*.safetensors").glob("*.safetensors")):
        fetch(repository, *(f"*{suffix}" for suffix in PICKLED))
    return _from_folder(folder, f"hf-hub:{repository}", name=repository.split("/")[1])


def _hub_repository(name: str) -> str | None:
    """The org/name of a hub repository that a name may mean."""
    repository = name.removeprefix("hf-hub:")
    return (
        repository
        if re.fullmatch(r"[\w.-]+/[\w.-]+", repository) and not name.startswith(("local-dir:", "."))
        else None
    )


def fetch(repository: str, *patterns: str) -> Path:
    """The folder in which a hub repository's files of these patterns lie, those fetched that were not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{repository}: there is no such folder here, and hub repository {repository!r} cannot be had: {reason(error)}"
        ) from error


def _from_folder(folder: Path, label: str, *, name: str | None = None, weights: Path | None = None) -> Source:
    model_cfg, rest, config = _read_config(folder, label)
    ours, preprocess_cfg = rest.get("capsmith", {}), rest.get("preprocess_cfg") or {}
    problems = [
        f"{key} is no object"
        for key, value in (("capsmith", ours), ("preprocess_cfg", preprocess_cfg))
        if not isinstance(value, dict)
    ]
    if problems:
        raise ValueError(f"{config}: " + "; ".join(problems))
    if own := ours.get("name"):
        check_name(own)
    check_numbers(preprocess_cfg, config)
    check_folder(folder)
    check_inside(folder, model_cfg["text_cfg"].get("tokenizer_kwargs") or {}, str(config))
    return Source(
        name=own or column_name(name or folder.resolve().name),
        model_cfg=model_cfg,
        preprocess_cfg=preprocess_cfg,
        weights=weights or find_weights(folder),
        folder=folder,
        config_from=str(config),
        preprocess_from=f"preprocess_cfg in {config}" if rest.get("preprocess_cfg") else "",
    )


def _read_config(folder: Path, label: str) -> tuple[dict, dict, Path]:
    """The open_clip model config of a folder, the rest of its file, and the file: what the folder holds decides."""
    for path in (folder / CLIP_CONFIG, folder / "config.json"):
        if not path.is_file():
            continue
        config = read_object(path)
        if path.name == CLIP_CONFIG and "model_cfg" not in config:
            raise ValueError(f"{path}: no model_cfg")
        model_cfg = config.get("model_cfg", config)
        if not isinstance(model_cfg, dict):
            raise ValueError(f"{path}: model_cfg is no object")
        if path.name == "config.json" and _is_transformers_config(config):
            raise ValueError(
                f"{label}: holds a transformers model; those come with weights of their own, and never from scratch"
            )
        check_coca(model_cfg, str(path))
        return model_cfg, config if model_cfg is not config else {}, path
    raise ValueError(f"{label}: neither open_clip_config.json nor config.json in it")


def _is_transformers_config(config: Mapping[str, Any]) -> bool:
    model_cfg = config.get("model_cfg", config)
    return (
        isinstance(model_cfg, dict)
        and "embed_dim" not in model_cfg
        and bool({"model_type", "architectures"} & set(config))
    )


def find_weights(folder: Path) -> Path | None:
    """The one file of weights in a folder, safetensors first; None where there is none, ValueError where it is unclear."""
    for suffixes in ((".safetensors",), PICKLED):
        files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
        known = sorted(
            (path for path in files if path.name in WEIGHT_NAMES), key=lambda path: WEIGHT_NAMES.index(path.name)
        )
        if known or len(files) == 1:
            return (known or files)[0]
        if files:
            raise ValueError(f"{folder}: which of these are the weights? {', '.join(path.name for path in files)}")
    return None


def check_coca(model_cfg: Mapping[str, Any], where: str) -> None:
    """Refuses a config that is no CoCa with a causal text tower, with every reason at once."""
    problems = []
    sections = {}
    for section in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        sections[section] = model_cfg.get(section)
        if not isinstance(sections[section], Mapping):
            problems.append(
                f"{section} is missing: not a CoCa" if sections[section] is None else f"{section} is no object"
            )
    if "embed_dim" not in model_cfg:
        problems.append("embed_dim is missing")
    if not problems:
        problems = _tower_problems(model_cfg["embed_dim"], **sections)
    if problems:
        raise ValueError(f"{where}: no CoCa that can caption: " + "; ".join(problems))


def _tower_problems(embed_dim: int, vision_cfg: Mapping, text_cfg: Mapping, multimodal_cfg: Mapping) -> Sequence[str]:
    numbers = [
        ("embed_dim", embed_dim),
        *(
            (f"{section}.{key}", cfg[key])
            for section, cfg in (
                ("vision_cfg", vision_cfg),
                ("text_cfg", text_cfg),
                ("multimodal_cfg", multimodal_cfg),
            )
            for key in ("width", "layers", "heads", "vocab_size", "context_length", "patch_size")
            if key in cfg and not isinstance(cfg[key], list)
        ),
    ]
    problems = [
        f"{name} is {value!r}, no number above 0" for name, value in numbers if type(value) is not int or value < 1
    ]
    if problems:
        return problems
    if text_cfg.get("hf_model_name"):
        problems.append(f"text_cfg.hf_model_name is {text_cfg['hf_model_name']}, a text tower that is not causal")
        return problems
    if text_cfg.get("no_causal_mask"):
        problems.append("text_cfg.no_causal_mask is set: the text tower is not causal")
    for section, cfg in (("vision_cfg", vision_cfg), ("text_cfg", text_cfg)):
        if not cfg.get("output_tokens"):
            problems.append(f"{section}.output_tokens is not set")
    if not text_cfg.get("embed_cls"):
        problems.append("text_cfg.embed_cls is not set")
    if vision_cfg.get("timm_model_name") or isinstance(vision_cfg.get("layers"), Sequence):
        problems.append("vision_cfg is not of a vision transformer")
    special = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
    problems += [f"text_cfg.{key} is not supported" for key in special if text_cfg.get(key)]
    if text_cfg.get("block_type") not in (None, "default"):
        problems.append(f"text_cfg.block_type {text_cfg['block_type']!r} is not supported")
    width = multimodal_cfg.get("width", 512)
    if text_cfg.get("width", 512) != width:
        problems.append(f"text_cfg.width {text_cfg.get('width', 512)} is not multimodal_cfg.width {width}")
    image_width = embed_dim if vision_cfg.get("attentional_pool") else vision_cfg.get("width", 768)
    if image_width != width:
        problems.append(f"image tokens have width {image_width}, multimodal_cfg.width is {width}")
    return problems
