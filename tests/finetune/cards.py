"""What a card tells its reader to run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt


def code_of(card: Path, names: Mapping[str, Any]) -> list[str]:
    """The card's blocks of code, with the names that stand for folders and files replaced."""
    blocks = [
        token.content for token in MarkdownIt("commonmark").parse(card.read_text()) if token.type == "code_block"
    ]
    for name, value in names.items():
        blocks = [block.replace(name, str(value)) for block in blocks]
    return blocks
