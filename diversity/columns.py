"""Caption columns from records: those of several inputs joined by key."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import crc32

if TYPE_CHECKING:
    from imagetext.sample import Record

HUMAN = "captions"   # the originals of a record
IMAGES_KEPT = 48     # candidates for the report's example pictures


@dataclass
class Picture:
    """One picture as the records of all inputs describe it."""

    key: str
    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    truncated: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    scene: dict[str, Any] | None = None
    image: bytes | None = None


@dataclass(frozen=True)
class Columns:
    """The pictures found, the names of their columns, and how many records had no captions because they failed."""

    pictures: list[Picture]
    names: list[str]
    references: str | None
    failed: int


def read_columns(records: "Iterable[Record]", names: Sequence[str] = (), references: str | None = None) -> Columns:
    """Gathers caption columns, all `syn_text_*` unless `names` are given, and the references' column.

    Records of one key are one picture; a key that comes again with the same column is another picture, as between shards.
    Raises `ValueError` for columns that no record has.
    """
    pictures: dict[tuple[str, int], Picture] = {}
    seen: dict[tuple[str, str], int] = {}
    found: Counter[str] = Counter()
    shown: list[Picture] = []
    failed = 0
    for record in records:
        failed += bool(record.error)
        available = _columns(record, [*names, references])
        found.update(available.keys())
        wanted = {name: captions for name, captions in available.items()
                  if (name in names if names else name.startswith("syn_text"))}
        again = max((seen.get((record.sample.key, name), 0) for name in wanted), default=0)
        seen |= {(record.sample.key, name): again + 1 for name in wanted}
        picture = pictures.setdefault((record.sample.key, again), Picture(record.sample.key))
        picture.captions |= wanted
        picture.truncated |= {name: marks for name in wanted if (marks := _truncated(record, name))}
        picture.references = picture.references or available.get(references or HUMAN, ())
        picture.scene = picture.scene or record.sample.meta.get("scene")
        if record.sample.image and not picture.image:
            picture.image = record.sample.image
            shown = _keep_some_images([*shown, picture])
    names = list(names) or [name for name in found if name.startswith("syn_text")]
    _check(names, references, found)
    if references is None and HUMAN in found and HUMAN not in names:
        references = HUMAN
    return Columns(list(pictures.values()), names, references, failed)


def _columns(record: "Record", others: Sequence[str | None]) -> dict[str, tuple[str, ...]]:
    """The caption columns that have a caption here: originals, synthetic ones, and `others` from the rest of the record."""
    columns = {HUMAN: record.sample.captions, **record.syn_text}
    for name in others:
        value = record.sample.meta.get(name, ())
        if isinstance(value, str):
            columns.setdefault(name, (value,))
        elif isinstance(value, list | tuple) and all(isinstance(caption, str) for caption in value):
            columns.setdefault(name, tuple(value))
    return {name: tuple(captions) for name, captions in columns.items() if captions}


def _truncated(record: "Record", name: str) -> tuple[bool, ...]:
    """The marks of captions that a length limit cut, where the record has them for every caption."""
    marks = record.sample.meta.get("caption_scores", {}).get(name, {}).get("truncated", ())
    return tuple(map(bool, marks)) if len(marks) == len(record.syn_text.get(name, ())) else ()


def _keep_some_images(shown: list[Picture]) -> list[Picture]:
    """Lets go of the bytes of all but a few pictures, chosen by key, so that memory does not grow with them."""
    if len(shown) <= 2 * IMAGES_KEPT:
        return shown
    shown = sorted(shown, key=lambda picture: (crc32(picture.key.encode("utf-8", "surrogatepass")), picture.key))
    for picture in shown[IMAGES_KEPT:]:
        picture.image = None
    return shown[:IMAGES_KEPT]


def _check(names: Sequence[str], references: str | None, found: Counter[str]) -> None:
    have = f"the records have {', '.join(sorted(found)) or 'no captions'}"
    if not names:
        raise ValueError(f"no syn_text_* column found: name one with --column; {have}")
    problems = [f"--column {name}: no such column" for name in names if name not in found]
    if references is not None and references not in found:
        problems.append(f"--references {references}: no such column")
    if problems:
        raise ValueError("; ".join([*problems, have]))
