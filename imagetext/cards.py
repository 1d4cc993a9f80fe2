"""Cards: the README.md of a folder that is published, as the Hugging Face Hub reads it.

No text of the data can become markup in a card.
"""

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
    """Write `README.md` from a Markdown template into a folder on this machine or in a store.

    The template gets `front` as the YAML of its header, `settings` as YAML in a code block, `version`, and the values,
    each as text on one line. `value|python` is a value in Python's notation, for a code block. Of absolute paths only
    the last part is written.
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
    except metadata.PackageNotFoundError:  # capsmith runs from its source folder
        return "(not installed)"


def _yaml(values: Mapping[str, Any]) -> Markup:
    """YAML that is not escaped as Markdown, for the header or a code block."""
    return Markup(in_yaml(_public(values)))


def _indented(text: str) -> Markup:
    """An indented code block, which no text can end, while a text could end a fenced one."""
    return Markup("".join(f"    {line}\n" for line in text.splitlines()))


def _python(value: Any) -> Markup:
    """A value in Python's notation, on one line."""
    return Markup(repr(_public(value)))


def _markdown(value: Any) -> str:
    """A value as Markdown that shows exactly its text."""
    return value if isinstance(value, Markup) else in_markdown(_public(str(value)))


def _public(value: Any) -> Any:
    """A value as others may read it: without secrets, and with only the last part of absolute paths."""
    if isinstance(value, str):
        return re.sub(r"(?<![\w/.])/(?:[^/\s'\"]+/)+", "…/", masked(neutral(value)))
    if isinstance(value, Mapping):
        return {_public(name): _public(item) for name, item in value.items()}
    return list(map(_public, value)) if isinstance(value, list | tuple) else value
