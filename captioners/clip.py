"""Load CLIP models of open_clip by name. The options `--clip`, `--embedder` and `--teacher` take the same names.

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
    """Where a CLIP model comes from: its name and pretrained tag in open_clip, and its checked config."""

    name: str
    pretrained: str | None
    model_cfg: Mapping[str, Any]


LONG_WORD = 64  # characters per piece of a long word: CLIP's tokenizer takes time quadratic in a word's length


def is_longer_than(text: str, tokens: int) -> bool:
    """Whether a text has more than this many tokens by CLIP's tokenizer, start and end included."""
    tokens_left = tokens - 2  # without start and end
    for word in text.split():
        for start in range(0, len(word), LONG_WORD):
            tokens_left -= len(_tokenizer().encode(word[start : start + LONG_WORD]))
            if tokens_left < 0:
                return True
    return tokens_left < 0


@cache
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer  # late: it imports torch

    return SimpleTokenizer()


def is_open_clip(name: str) -> bool:
    """Whether a name can only mean a model of open_clip; nothing is loaded.

    False for org/name, which may be a model of another library.
    """
    import open_clip  # late: it imports torch

    return (
        name.startswith(("hf-hub:", "local-dir:"))
        or (Path(name) / CLIP_CONFIG).is_file()
        or _architecture(name)[0] in open_clip.list_models()
    )


def find_clip(name: str) -> ClipSource:
    """Find the source of a model by its name, as `clip_source` takes it.

    Raises ValueError if there is no such model, or its config asks for code to be run.
    """
    source, pretrained = clip_source(name)
    return ClipSource(source, pretrained, read_clip_config(source))


def load_clip(source: ClipSource, *, device: str = "cpu", random: bool = False) -> tuple[Any, Any]:
    """Load the model and its tokenizer.

    random: allow random weights for a source that has no weights.
    Raises: ValueError that says why open_clip cannot load the model, or that some of its weights are integers or not
        finite.
    """
    import open_clip  # late: it imports torch

    from captioners.weights import check_finite, check_floats

    has_own_config = ":" in source.name  # a folder or a hub repository, not an architecture of open_clip
    try:
        weights = _weights_of(source.name) if has_own_config else None
        if has_own_config and weights is None and not random:
            raise ValueError("it has no weights")
        load_weights = not has_own_config or weights is not None
        check_text_tower(source.model_cfg["text_cfg"])
        if weights is not None:
            meta_model = _meta_model(source.name)
            check_size(meta_model, [weights], source.name.partition(":")[2])
            check_floats(meta_model, weights)
        model: Any = open_clip.create_model(  # Any: torch's types do not know the attributes of open_clip's models
            source.name,
            source.pretrained,
            device=device,
            pretrained_text=False,
            load_weights=load_weights,
            require_pretrained=not random,
        )
        check_finite(model, source.name)
        preprocessing(model.visual.preprocess_cfg)(Image.new("RGB", (32, 32)))
        return model, open_clip.get_tokenizer(source.name)
    except Exception as error:  # open_clip, huggingface_hub and torch raise errors of many types
        raise ValueError(reason(error)) from error


def _weights_of(name: str) -> Path | None:
    """The file of weights of a folder or a hub repository, fetched if necessary; None if there is none."""
    from open_clip.pretrained import download_pretrained_from_hf

    kind, _, folder_or_repository = name.partition(":")
    if kind == "local-dir":
        return find_weights(Path(folder_or_repository))
    try:
        return Path(download_pretrained_from_hf(folder_or_repository))
    except FileNotFoundError:
        return None


def check_text_tower(text_cfg: Mapping[str, Any]) -> None:
    """Check the text tower of transformers that a config names, if it names one.

    Raises ValueError if the config names it by a path, open_clip does not support its type, or a number is too large.
    """
    from open_clip.hf_configs import arch_dict
    from transformers.utils import cached_file

    for field in ("hf_model_name", "hf_tokenizer_name"):
        if (name := text_cfg.get(field)) and not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(name)):
            raise ValueError(f"its text_cfg.{field} is {name!r}, which is no org/name of a hub repository")
    if not (name := text_cfg.get("hf_model_name")):
        return
    config = read_object(Path(cached_file(name, "config.json") or ""))
    if (kind := config.get("model_type")) not in arch_dict:
        raise ValueError(f"its text tower {name} has type {kind!r}, but open_clip supports {', '.join(arch_dict)}")
    check_numbers(config, f"{name}: config.json")


def _meta_model(name: str) -> "nn.Module":
    """Build the model on the meta device, where weights have shapes but take no memory."""
    import open_clip
    import torch

    logging.disable(logging.WARNING)  # open_clip would warn that no weights are loaded
    try:
        with torch.device("meta"):
            return open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta")
    finally:
        logging.disable(logging.NOTSET)


def preprocessing(preprocess_cfg: Mapping[str, Any]) -> Callable[[Image.Image], "Tensor"]:
    """The model's transform from a decoded picture to pixels (3, H, W)."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    # Any: by its types, the function may also return three transforms, which it does only for training.
    transform: Any = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)
    return transform


def clip_source(name: str) -> tuple[str, str | None]:
    """Return the name that open_clip uses for a model and, if that is an architecture, its pretrained tag or file.

    name: one of
        - ARCHITECTURE:TAG, such as `ViT-B-32:laion2b_s34b_b79k`;
        - ARCHITECTURE:FILE, with a file of weights;
        - a folder in open_clip's layout, such as a fine-tuned captioner, with or without the prefix local-dir:;
        - org/name of a hub repository, with or without the prefix hf-hub:.
    Raises ValueError if the name is none of these, or is an architecture without weights.
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
    """Read and check the config of a model, given the name that open_clip uses for it.

    Raises ValueError if there is no config, its numbers or files are too large, or it asks for code to be run.
    """
    import open_clip

    folder = Path(source.removeprefix("local-dir:")) if source.startswith("local-dir:") else None
    if folder is not None and folder.is_dir():
        check_folder(folder)
    elif source.startswith("hf-hub:"):
        check_folder(fetch(source.removeprefix("hf-hub:"), *SMALL_FILES))
    try:
        model_cfg: Any = open_clip.get_model_config(source)  # None if there is no config
        options = model_cfg["text_cfg"].get("tokenizer_kwargs") or {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no {CLIP_CONFIG} of a CLIP model: {reason(error)}") from error
    if not isinstance(options, Mapping):
        raise ValueError(f"its tokenizer_kwargs are not a JSON object: {options}")
    check_numbers(model_cfg, CLIP_CONFIG)
    check_inside(folder, options, CLIP_CONFIG)
    return model_cfg


def captioner_name(name: str) -> str:
    """The name, in columns of records, of the captioner that this name of a model loads."""
    folder = Path(name.removeprefix("local-dir:"))
    config = folder / CLIP_CONFIG
    if config.is_file() and (configured_name := read_object(config).get("capsmith", {}).get("name")):
        return configured_name
    if folder.is_dir():
        return column_name(folder.resolve().name)
    architecture, _, weights = name.removeprefix("hf-hub:").partition(":")
    if weights:
        return column_name(f"{architecture}_{Path(weights).stem}")
    return column_name(architecture.rpartition("/")[2])


def _architecture(name: str) -> tuple[str, str]:
    architecture, _, pretrained = name.partition(":")
    return architecture.replace("/", "-"), pretrained  # open_clip writes ViT-B/32 as ViT-B-32
