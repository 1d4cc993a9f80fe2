"""Caption columns side by side: pictures with the captions that are compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HUMAN = "captions"  # the originals of a record


@dataclass
class Picture:
    """One picture with those captions of each column that are compared: equally many, in the column's order.

    `references` are all captions of the references' column, which is a column too; of that no more are compared than
    of the others.
    """

    key: str
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    truncated: dict[str, tuple[bool, ...]] = field(default_factory=dict)  # marks of cut captions, where they are known
    references: tuple[str, ...] = ()
    scene: Mapping[str, Any] | None = None  # the description of a built-in picture
    image: bytes | None = None  # encoded, as found
    again: int = 0  # pictures of the same key before this one


def labels(names: Iterable[str], references: str | None = None) -> dict[str, str]:
    """The columns' names as people read them: the references are human, others without syn_text_ where they stay apart."""
    names = list(names)
    human = references if references in names else HUMAN
    short = {name: "human" if name == human else name.removeprefix("syn_text_") for name in names}
    if len(set(short.values())) == len(short):
        return short
    return {name: "human captions" if name == references and "human captions" not in names else name for name in names}
