"""CLIP models of open_clip by name, for all rooms: `--clip`, `--embedder` and `--teacher` take the same names.

H, W: height and width of the pixels
"""

import logging
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from captioners.names import column_name
from captioners.resolve import CLIP_CONFIG, SMALL_FILES, fetch, find_weights
from captioners.safe_reading import check_folder, check_inside, check_numbers, check_size, read_object
from imagetext.shown import reason

if TYPE_CHECKING:
    from torch import Tensor, nn


class ClipSource(NamedTuple):
    """Where a model comes from: `name` and `pretrained` as open_clip takes them; and its config, which runs no code."""

    name: str
    pretrained: str | None
    model_cfg: Mapping[str, Any]


LONG_WORD = 64  # characters of a word that CLIP's tokenizer reads at a time: longer ones take it their length squared


def is_longer_than(text: str, tokens: int) -> bool:
    """Whether a text has more tokens of CLIP's tokenizer, start and end included."""
    room = tokens - 2
    for word in text.split():
        for start in range(0, len(word), LONG_WORD):
            room -= len(_tokenizer().encode(word[start : start + LONG_WORD]))
            if room < 0:
                return True
    return room < 0


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # late: it imports torch

    return SimpleTokenizer()


def is_open_clip(name: str) -> bool:
    """Whether a name can only mean a model of open_clip (an org/name may be of another library's); nothing is loaded."""
    import open_clip  # late: it imports torch

    return (
        name.startswith(("hf-hub:", "local-dir:"))
        or (Path(name) / CLIP_CONFIG).is_file()
        or _architecture(name)[0] in open_clip.list_models()
    )


def find_clip(name: str) -> ClipSource:
    """The model of a name as `clip_source` takes it; ValueError where there is none, or it asks for code of its own to be run."""
    source, pretrained = clip_source(name)
    return ClipSource(source, pretrained, read_clip_config(source))


def load_clip(source: ClipSource, *, device: str = "cpu", random: bool = False) -> tuple[Any, Any]:
    """The model and its tokenizer; of what has no weights, a model with random ones where `random` allows it.

    Raises: ValueError that says why open_clip cannot load it.
    """
    import open_clip  # late: it imports torch

    is_own = ":" in source.name  # not one that open_clip knows, whose config is open_clip's
    try:
        file = _weights_of(source.name) if is_own else None
        if is_own and file is None and not random:
            raise ValueError("it has no weights")
        loads = not is_own or file is not None
        check_text_tower(source.model_cfg["text_cfg"])
        if file is not None:
            check_size(_without_memory(source.name), [file], source.name.partition(":")[2])
        model: Any = open_clip.create_model(  # whose parts torch's types do not know
            source.name,
            source.pretrained,
            device=device,
            pretrained_text=False,
            load_weights=loads,
            require_pretrained=not random,
        )
        preprocessing(model.visual.preprocess_cfg)(Image.new("RGB", (32, 32)))
        return model, open_clip.get_tokenizer(source.name)
    except Exception as error:  # open_clip, huggingface_hub and torch raise many kinds
        raise ValueError(reason(error)) from error


def _weights_of(name: str) -> Path | None:
    """The file of weights of a folder or a hub repository, fetched where it is not there; None where there is none."""
    from open_clip.pretrained import download_pretrained_from_hf

    kind, _, place = name.partition(":")
    if kind == "local-dir":
        return find_weights(Path(place))
    try:
        return Path(download_pretrained_from_hf(place))
    except FileNotFoundError:
        return None


def check_text_tower(text_cfg: Mapping[str, Any]) -> None:
    """Refuses a text tower of transformers that a config names by a path, of a kind that open_clip does not know, or without bounds."""
    from open_clip.hf_configs import arch_dict
    from transformers.utils import cached_file

    for field in ("hf_model_name", "hf_tokenizer_name"):
        if (name := text_cfg.get(field)) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
            raise ValueError(f"its text_cfg.{field} is {name!r}, which is no org/name of a hub repository")
    if not (name := text_cfg.get("hf_model_name")):
        return
    config = read_object(Path(cached_file(name, "config.json") or ""))
    if (kind := config.get("model_type")) not in arch_dict:
        raise ValueError(f"its text tower {name} is of the kind {kind!r}, and open_clip takes {', '.join(arch_dict)}")
    check_numbers(config, f"{name}: config.json")


def _without_memory(name: str) -> "nn.Module":
    """The model as its config has it, whose weights have shapes alone."""
    import open_clip
    import torch

    logging.disable(logging.WARNING)  # that there are no weights
    try:
        with torch.device("meta"):
            return open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
    finally:
        logging.disable(logging.NOTSET)


def preprocessing(preprocess_cfg: Mapping[str, Any]) -> Callable[[Image.Image], "Tensor"]:
    """The transform of a decoded picture to pixels (3, H, W), as the model takes them."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Any = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)  # one, and for training three
    return transform


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

    folder = Path(source.removeprefix("local-dir:")) if source.startswith("local-dir:") else None
    if folder is not None and folder.is_dir():
        check_folder(folder)
    elif source.startswith("hf-hub:"):
        check_folder(fetch(source.removeprefix("hf-hub:"), *SMALL_FILES))
    try:
        model_cfg: Any = open_clip.get_model_config(source)  # None where there is none
        options = model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no {CLIP_CONFIG} of a CLIP model: {reason(error)}") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"its tokenizer_kwargs are no object: {options}")
    check_numbers(model_cfg, CLIP_CONFIG)
    check_inside(folder, options, CLIP_CONFIG)
    return model_cfg


def captioner_name(name: str) -> str:
    """The name that a captioner has in records which is loaded by this name of a model."""
    folder = Path(name.removeprefix("local-dir:"))
    config = folder / CLIP_CONFIG
    if config.is_file() and (own := read_object(config).get("capsmith", {}).get("name")):
        return own
    architecture, _, weights = name.removeprefix("hf-hub:").partition(":")
    return column_name(
        folder.resolve().name
        if folder.is_dir()
        else f"{architecture}_{Path(weights).stem}"
        if weights
        else architecture.rpartition("/")[2]
    )


def _architecture(name: str) -> tuple[str, str]:
    architecture, _, pretrained = name.partition(":")
    return architecture.replace("/", "-"), pretrained  # ViT-B/32 is ViT-B-32 to open_clip
