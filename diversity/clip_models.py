"""CLIP models of open_clip by name: `--clip`, `--embedder` and `--teacher` take the same names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "open_clip_config.json"


def is_open_clip(name: str) -> bool:
    """Whether a name can only mean a model of open_clip (an org/name may be of another library's); nothing is loaded."""
    import open_clip  # late: it imports torch

    return (name.startswith(("hf-hub:", "local-dir:")) or (Path(name) / CONFIG).is_file()
            or _architecture(name)[0] in open_clip.list_models())


def clip_source(name: str) -> tuple[str, str | None]:
    """A model as open_clip itself names it, and where that is an architecture, its pretrained tag or file.

    `name`: ARCHITECTURE:TAG (`ViT-B-32:laion2b_s34b_b79k`), ARCHITECTURE:FILE of weights, a folder in open_clip's layout, as
    fine-tuned captioners are, with or without local-dir:, or org/name of a hub repository, with or without hf-hub:.
    Raises ValueError where it is none of these, or does not say which weights.
    """
    import open_clip

    architecture, pretrained = _architecture(name)
    if architecture in open_clip.list_models():
        if not pretrained:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
            raise ValueError(f"which weights? Say {architecture}:TAG or {architecture}:FILE (tags: {tags})")
        return architecture, pretrained
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return f"hf-hub:{name}", None
    raise ValueError("no ARCHITECTURE:TAG of open_clip, no folder, and no org/name of a hub repository")


def read_clip_config(source: str) -> Mapping[str, Any]:
    """The config of a model that open_clip names so; ValueError where it has none, or asks for code of its own to be run."""
    import open_clip

    try:
        model_cfg = open_clip.get_model_config(source)
        options = model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no {CONFIG} of a CLIP model: {error}") from error
    if not isinstance(options, Mapping) or "trust_remote_code" in options:
        raise ValueError(f"its tokenizer_kwargs ask for code to be run: {options}")
    return model_cfg


def _architecture(name: str) -> tuple[str, str]:
    architecture, _, pretrained = name.partition(":")
    return architecture.replace("/", "-"), pretrained  # ViT-B/32 is ViT-B-32 to open_clip
