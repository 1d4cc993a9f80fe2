"""Pictures with the captions that are compared, and the names of caption columns as readers see them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

HUMAN = "captions"  # the column of a record's original captions
MOST_CAPTIONS = 100  # captions of a picture that are compared; time and memory of some measures grow with its square


@dataclass
class ComparedPicture:
    """One picture with the captions of each column that are compared: equally many, in the order of the column.

    `references` holds all captions of the references' column. That column is also in `captions`, where it has at most
    as many captions as the other columns.
    """

    key: str
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # which captions were cut, where this is known
    truncated: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    scene: Mapping[str, Any] | None = None  # the description of a built-in picture
    image: bytes | None = None  # the encoded picture, as it was read
    occurrence: int = 0  # how many pictures with the same key came before this one


def labels(names: Iterable[str], references: str | None = None) -> dict[str, str]:
    """Return the label of each column in reports: "human" for the references, other names without "syn_text_".

    Where two labels would be equal, the full names are used.
    """
    names = list(names)
    short = {name: "human" if name == references else name.removeprefix("syn_text_") for name in names}
    if len(set(short.values())) == len(short):
        return short
    full = {name: name for name in names}
    if references is not None and references in names and "human captions" not in names:
        full[references] = "human captions"
    return full
