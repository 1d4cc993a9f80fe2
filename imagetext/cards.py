"""Cards: the README.md of a folder that is passed on, as the Hugging Face Hub reads it; no text of the data is markup in it."""

import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagetext.outputs import write_file
from imagetext.stores import join, plain_path

CARD = "README.md"


def write_card(folder: str | os.PathLike, template: Path, *, front: Mapping[str, Any], settings: Mapping[str, Any],
               **values: Any) -> None:
    """Writes `README.md` into a folder, here or in a store, from a template of Markdown.

    The template gets `front` as the YAML of its header, `settings` as YAML in a block of code, `version`, and the values, each
    as text on one line. Of this machine's paths only the last part is written.
    """
    environment = Environment(loader=FileSystemLoader(template.parent), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True, finalize=_markdown)
    environment.filters["code"] = _code
    card = environment.get_template(template.name).render(values, front=_yaml(front), settings=_indented(_yaml(settings)),
                                                          version=_version())
    write_file(join(plain_path(folder), CARD), card)


def _version() -> str:
    try:
        return metadata.version("capsmith")
    except metadata.PackageNotFoundError:  # run from its source
        return "(not installed)"


def _yaml(values: Mapping[str, Any]) -> Markup:
    """YAML as it is, no Markdown: of front matter, or of a block of code."""
    return Markup(_without_paths(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)))


def _indented(text: str) -> Markup:
    """A block of code: by its indent, which, unlike a fence, nothing in the text can end."""
    return Markup("".join(f"    {line}\n" for line in text.splitlines()))


def _code(value: Any) -> Markup:
    """A value within a block of code, on one line."""
    return Markup(" ".join(str(value).split()))


def _markdown(value: Any) -> str:
    """A value as Markdown that shows just that, on one line, so that in a table it stays in its cell."""
    if isinstance(value, Markup):
        return value
    return re.sub(r"([\\`*_\[\]<>#|~$&@])", r"\\\1", " ".join(_without_paths(str(value)).split()))


def _without_paths(text: str) -> str:
    """Absolute paths cut to their last part: a card is for others."""
    return re.sub(r"(?<![\w/.])/(?:[^/\s'\"]+/)+", "…/", text)
