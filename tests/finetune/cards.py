"""The code blocks of a model card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt


def code_of(card: Path, names: Mapping[str, Any]) -> list[str]:
    """Return the card's blocks of code, with its placeholders for folders and files replaced."""
    blocks = [
        token.content for token in MarkdownIt("commonmark").parse(card.read_text()) if token.type == "code_block"
    ]
    for name, value in names.items():
        blocks = [block.replace(name, str(value)) for block in blocks]
    return blocks
