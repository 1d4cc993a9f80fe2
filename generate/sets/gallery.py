"""`capsmith gallery`: a page of pictures with their captions, in a single HTML file."""

import base64
import io
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from generate.runs.config import Folder
from generate.runs.manifest import GALLERY, expect_run
from imagetext.columns import is_tags
from imagetext.fields import CUT, KIND
from imagetext.outputs import write_file
from imagetext.pages import render_page
from imagetext.sample import Record, decode_image
from imagetext.shards import read_markers
from imagetext.shown import say
from imagetext.sources import read_records
from imagetext.stores import join, read_head

THUMBNAIL = 480  # pixels of the longer side: twice the size on the page, for high-resolution screens
ORIGINAL = "original"
TEMPLATE = Path(__file__).parent / "templates" / "gallery.html"
SCORES = (("logprob", "log-probability {:.1f}"), ("similarity", "similarity {:.2f}"))


class GalleryConfig(BaseModel):
    """Write a page of random pictures of a finished set, with original and synthetic captions, scores and flags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Folder] = Field(
        description="folder of a set that capsmith generate, reinforce, join or select wrote"
    )
    pictures: int = Field(60, gt=0, description="pictures to draw; each adds about 30 kB to the page")
    seed: int = Field(0, ge=0, description="random seed for the choice of pictures")
    images: list[str] = Field(
        [],
        description="folder, local or s3://…, with the pictures of a JSONL set, if they are not in the set's own "
        "folder; repeatable",
    )
    output: Path | None = Field(None, description=f"page to write (default: {GALLERY} in the folder)")


class Line(NamedTuple):
    """A caption on the page: its text, why it is degenerate, and its scores in words."""

    text: str
    flags: tuple[str, ...] = ()
    scores: str = ""


class Card(NamedTuple):
    """A picture on the page: its captions by column, or the error why it has none."""

    key: str
    image: bytes | None
    columns: Mapping[str, Sequence[Line]]
    error: str = ""


def run(config: GalleryConfig) -> int:
    """Write the page, and return exit code 0.

    Raises: ValueError where the folder holds no run of ours or no finished shard, or where the output is another file.
    """
    path = config.output or join(config.folder, GALLERY)
    if config.output and config.output.exists() and not _is_page(config.output):
        raise ValueError(f"--output {config.output}: exists, and is no page; give another name")
    write_set_gallery(config.folder, path, config.pictures, seed=config.seed, images=config.images)
    say(f"written: {path}")
    return 0


def _is_page(path: Path) -> bool:
    return read_head(str(path), 15).startswith(b"<!doctype html")


def write_set_gallery(
    folder: str, path: str | Path, pictures: int = 60, *, seed: int = 0, images: Sequence[str] = ()
) -> None:
    """Write a page of `pictures` records of a set, which are drawn by the seed from all of its finished shards.

    images: folders with the pictures that a JSONL set names.
    """
    expect_run(folder)
    markers = list(read_markers(folder).values())
    rows = sum(marker["rows"] for marker in markers)
    if not rows:
        raise ValueError(f"{folder}: holds no finished shard with records")
    indices = sorted(random.Random(seed).sample(range(rows), min(pictures, rows)))
    columns = ", ".join(sorted({column for marker in markers for column in marker["captions"]}, key=_column_order))
    write_gallery(
        path,
        map(card_of, _records_at(indices, folder, markers, images=images)),
        title=f"Captions in {columns}",
        subtitle=f"{len(indices):,} of {rows:,} pictures, drawn at random with seed {seed}",
    )


def _records_at(
    indices: Sequence[int], folder: str, markers: Iterable[Mapping[str, Any]], *, images: Sequence[str]
) -> Iterator[Record]:
    """Yield the records with these indices in the set, in rising order; shards without any of them are not read."""
    first = 0
    for marker in markers:
        shard_indices = {index - first for index in indices if first <= index < first + marker["rows"]}
        first += marker["rows"]
        if shard_indices:
            records = read_records(join(folder, marker["file"]), images)
            yield from (record for index, record in enumerate(records) if index in shard_indices)


def card_of(record: Record) -> Card:
    """Return the card of a record: the original captions, then those of each column with their scores and flags."""
    columns = {ORIGINAL: [Line(caption) for caption in record.captions]}
    for name in sorted(record.named_columns, key=_column_order):
        scores = record.scores.get(name) or {}
        columns[name] = [_line(text, index, scores) for index, text in enumerate(record.named_columns[name])]
    return Card(record.key, record.image, columns, error=record.error)


def _column_order(column: str) -> tuple[bool, bool, str]:
    """Return the sort key of a column: captions come before tags, and true texts before false ones."""
    return is_tags(column), column.startswith("neg_"), column


def _line(text: str, index: int, scores: Mapping[str, Sequence[Any]]) -> Line:
    values = {
        name: column_scores[index]
        for name, column_scores in scores.items()
        if isinstance(column_scores, list) and index < len(column_scores)
    }
    score_texts = [form.format(values[name]) for name, form in SCORES if isinstance(values.get(name), float | int)]
    return Line(text, tuple(str(values.get("flags") or "").split()), ", ".join(score_texts))


def write_gallery(path: str | Path, cards: Iterable[Card], *, title: str = "Captions", subtitle: str = "") -> None:
    """Write a self-contained page of pictures with their captions, in the given order.

    A picture that does not decode is shown with the reason. A caption that a column repeats is shown once, with its
    count.
    """
    rendered = list(map(_rendered, cards))
    columns = list(dict.fromkeys(name for card in rendered for name, _ in card["columns"]))
    write_file(path, render_page(TEMPLATE, title=title, subtitle=subtitle, cards=rendered, columns=columns))


def _rendered(card: Card) -> dict[str, Any]:
    """Return a card as the template takes it."""
    columns = []
    for name, lines in card.columns.items():
        counts = Counter(line.text for line in lines)
        first_line = {line.text: line for line in reversed(lines)}
        columns.append((name, [(first_line[text], count) for text, count in counts.items()]))
    flags = [flag for lines in card.columns.values() for line in lines for flag in line.flags]
    thumbnail, reason = "", card.error
    try:
        thumbnail = _thumbnail(decode_image(card.image))
    except ValueError as error:
        reason = reason or str(error)
    return {
        "key": card.key,
        "thumbnail": thumbnail,
        "reason": reason,
        "columns": columns,
        "error": card.error,
        "flagged": bool(card.error) or any(map(_is_fault, flags)),
    }


def _is_fault(flag: str) -> bool:
    """Return whether a flag says that something is wrong, and not just what was cut off or how a negative was made."""
    return not flag.startswith((CUT, KIND))


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
