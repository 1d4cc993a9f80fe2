"""A page of pictures with their captions: one HTML file, nothing beside it."""

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

THUMBNAIL = 480  # pixels of the longer side: twice the size shown, for dense screens
ORIGINAL = "original"
TEMPLATE = Path(__file__).parent / "templates" / "gallery.html"
SCORES = (("logprob", "log-probability {:.1f}"), ("similarity", "similarity {:.2f}"))


class GalleryConfig(BaseModel):
    """A page of pictures of a finished set, drawn at random, with original and synthetic captions, scores and flags."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Folder] = Field(description="what capsmith generate, join or select wrote")
    pictures: int = Field(60, gt=0, description="how many are drawn; about 30 kB of page each")
    seed: int = Field(0, ge=0, description="of the draw")
    images: list[str] = Field(
        [], description="folder, or s3://…, in which pictures lie that a JSONL set names, beside its own; repeatable"
    )
    output: Path | None = Field(None, description=f"the page; {GALLERY} in the folder unless given")


class Line(NamedTuple):
    """A caption as it is shown: text, why it is degenerate, what it scored."""

    text: str
    flags: tuple[str, ...] = ()
    scores: str = ""


class Card(NamedTuple):
    """A picture as it is shown: its captions by column, or why it has none."""

    key: str
    image: bytes | None
    columns: Mapping[str, Sequence[Line]]
    error: str = ""


def run(config: GalleryConfig) -> int:
    """Write the page; exit code 0. Raises: ValueError where the folder holds no run of ours, no finished shard,
    or something else stands where the page is to go."""
    path = config.output or join(config.folder, GALLERY)
    if (
        config.output
        and config.output.exists()
        and not read_head(str(config.output), 15).startswith(b"<!doctype html")
    ):
        raise ValueError(f"--output {config.output}: is there, and is no page; give another name")
    write_set_gallery(config.folder, path, config.pictures, config.seed, config.images)
    say(f"written: {path}")
    return 0


def write_set_gallery(
    folder: str, path: str | Path, pictures: int = 60, seed: int = 0, images: Sequence[str] = ()
) -> None:
    """Write a page of `pictures` records of a set, drawn by the seed from all of its finished shards.

    images: folders in which pictures lie that a JSONL set names.
    """
    expect_run(folder)
    markers = list(read_markers(folder).values())
    rows = sum(marker["rows"] for marker in markers)
    if not rows:
        raise ValueError(f"{folder}: holds no finished shard with records")
    drawn = sorted(random.Random(seed).sample(range(rows), min(pictures, rows)))
    columns = ", ".join(sorted({column for marker in markers for column in marker["captions"]}, key=_kind))
    write_gallery(
        path,
        map(card_of, _records_at(folder, markers, drawn, images)),
        title=f"Captions in {columns}",
        subtitle=f"{len(drawn):,} of {rows:,} pictures, drawn at random with seed {seed}",
    )


def _records_at(
    folder: str, markers: Iterable[Mapping[str, Any]], places: Sequence[int], images: Sequence[str]
) -> Iterator[Record]:
    """The records at these places of the set, in rising order; shards without any are not read."""
    first = 0
    for marker in markers:
        of_shard = {place - first for place in places if first <= place < first + marker["rows"]}
        first += marker["rows"]
        if of_shard:
            records = enumerate(read_records(join(folder, marker["file"]), images))
            yield from (record for at, record in records if at in of_shard)


def card_of(record: Record) -> Card:
    """The original captions, then those of each column with their scores and flags."""
    lines = {
        name: [_line(text, at, record.scores.get(name) or {}) for at, text in enumerate(record.named_columns[name])]
        for name in sorted(record.named_columns, key=_kind)
    }
    return Card(record.key, record.image, {ORIGINAL: list(map(Line, record.captions)), **lines}, record.error)


def _kind(column: str) -> tuple[bool, bool, str]:
    """By which captions stand before tags, and what is true before what is not."""
    return is_tags(column), column.startswith("neg_"), column


def _line(text: str, at: int, scores: Mapping[str, Sequence[Any]]) -> Line:
    of_caption = {name: values[at] for name, values in scores.items() if isinstance(values, list) and at < len(values)}
    shown = [form.format(of_caption[name]) for name, form in SCORES if isinstance(of_caption.get(name), float | int)]
    return Line(text, tuple(str(of_caption.get("flags") or "").split()), ", ".join(shown))


def write_gallery(path: str | Path, cards: Iterable[Card], *, title: str = "Captions", subtitle: str = "") -> None:
    """Write a self-contained page of pictures with their captions, in the given order.

    A picture that does not decode is shown with the reason. A caption that a column repeats stands once, with its count.
    """
    shown = list(map(_shown, cards))
    columns = list(dict.fromkeys(name for card in shown for name, _ in card["columns"]))
    write_file(path, render_page(TEMPLATE, title=title, subtitle=subtitle, cards=shown, columns=columns))


def _shown(card: Card) -> dict[str, Any]:
    times = {name: Counter(line.text for line in lines) for name, lines in card.columns.items()}
    firsts = {name: {line.text: line for line in reversed(lines)} for name, lines in card.columns.items()}
    columns = [
        (name, [(firsts[name][text], count) for text, count in of_column.items()]) for name, of_column in times.items()
    ]
    flags = [flag for lines in card.columns.values() for line in lines for flag in line.flags]
    shown = {
        "key": card.key,
        "thumbnail": "",
        "reason": card.error,
        "columns": columns,
        "error": card.error,
        "flagged": bool(card.error) or any(map(_is_fault, flags)),
    }
    try:
        shown["thumbnail"] = _thumbnail(decode_image(card.image))
    except ValueError as error:
        shown["reason"] = shown["reason"] or str(error)
    return shown


def _is_fault(flag: str) -> bool:
    """Whether it says that something is amiss, and not just what was cut off an answer, or of which kind a negative is."""
    return not flag.startswith((CUT, KIND))


def _thumbnail(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
