"""Cards: the README.md of a folder that is passed on, as the Hugging Face Hub reads it; no text of the data is markup in it."""

import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagetext.outputs import write_file
from imagetext.shown import in_markdown, in_yaml, masked, neutral
from imagetext.stores import join, plain_path

CARD = "README.md"


def write_card(
    folder: str | os.PathLike, template: Path, *, front: Mapping[str, Any], settings: Mapping[str, Any], **values: Any
) -> None:
    """Writes `README.md` into a folder, here or in a store, from a template of Markdown.

    The template gets `front` as the YAML of its header, `settings` as YAML in a block of code, `version`, and the values, each
    as text on one line; `value|python` is a value in Python, for a block of code. Of this machine's paths only the last part is
    written.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_markdown,
    )
    environment.filters["python"] = _python
    card = environment.get_template(template.name).render(
        values, front=_yaml(front), settings=_indented(_yaml(settings)), version=_version()
    )
    write_file(join(plain_path(folder), CARD), card)


def _version() -> str:
    try:
        return metadata.version("capsmith")
    except metadata.PackageNotFoundError:  # run from its source
        return "(not installed)"


def _yaml(values: Mapping[str, Any]) -> Markup:
    """YAML as it is, no Markdown: of front matter, or of a block of code."""
    return Markup(in_yaml(_told(values)))


def _indented(text: str) -> Markup:
    """A block of code: by its indent, which, unlike a fence, nothing in the text can end."""
    return Markup("".join(f"    {line}\n" for line in text.splitlines()))


def _python(value: Any) -> Markup:
    """A value as Python writes it, on one line."""
    return Markup(repr(_told(value)))


def _markdown(value: Any) -> str:
    """A value as Markdown that shows just that."""
    return value if isinstance(value, Markup) else in_markdown(_told(str(value)))


def _told(value: Any) -> Any:
    """A value as others may read it: without secrets, and of absolute paths the last part alone."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w/.])/(?:[^/\s'\"]+/)+", "…/", masked(neutral(value)))
    if isinstance(value, Mapping):
        return {_told(name): _told(of) for name, of in value.items()}
    return list(map(_told, value)) if isinstance(value, list | tuple) else value
