"""Pieces of a table: some of its rows, which are read when they are asked for; and how rows of text are cut into pieces."""

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import BinaryIO, Protocol

from imagetext.fields import json_value
from imagetext.picture_files import PictureFolders
from imagetext.readers.cells import settle_quotes
from imagetext.readers.grouping import Repeats, side_by_side
from imagetext.readers.parquet import parquet_class_names, parquet_rows, scattered_rows
from imagetext.readers.row_records import Row, Wanted, json_object, row_records, with_unique_keys
from imagetext.readers.suffixes import split_suffix
from imagetext.readers.table_columns import BYTES, Reading, grouped, picture_named, usual_row
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import NEARBY, WINDOW, Findings
from imagetext.readers.text_tables import records, tell_of_strange_lines
from imagetext.sample import Record
from imagetext.stores import open_file

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 1000


class NumberedRows(Protocol):
    """Rows of a table, however they are read."""

    @property
    def path(self) -> str: ...

    @property
    def folders(self) -> PictureFolders | None: ...

    def numbered(self, wanted: Wanted | None = None) -> Iterator[tuple[int, Row | ValueError]]: ...


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table, read when iterated as `count` records; a row that is bad is a Record with its reason."""

    path: str
    first: int  # the number of the first row, in the whole table from 0
    rows: int
    count: int  # records: fewer where rows of one picture are one
    offset: int = 0  # bytes, where the first row starts (text)
    layout: Layout | None = None  # of text
    reading: Reading | None = None  # None: rows stay as they stand
    folders: PictureFolders | None = None  # that pictures may lie in; None: the table's own
    # Where rows of a picture do not stand together: each row's number, and its offset (text) or that of its picture's first row.
    places: array | None = field(default=None, compare=False)
    skipped: int | None = None  # records at the front that are not of these `count`; None: these rows have no others

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def __len__(self) -> int:
        return self.count

    def numbered(
        self, wanted: Wanted | None = None, file: BinaryIO | None = None
    ) -> Iterator[tuple[int, Row | ValueError]]:
        """Row numbers, from 0 in the whole table, and rows by usual names, or what is wrong with one as a whole.

        file: the table, where it is open.
        """
        firsts = None if self.layout or self.places is None else dict(zip(self.places[::2], self.places[1::2]))
        rows = self._text_rows(self.layout, file) if self.layout else self._parquet_rows(wanted)
        rows = as_read(rows, self.reading, wanted, firsts)
        return rows if self.skipped is None else islice(rows, self.skipped, self.skipped + self.count)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None where that is no column of classes, as only Parquet has."""
        return None if self.layout else parquet_class_names(self.path, column)

    def _parquet_rows(self, wanted: Wanted | None) -> Iterator[tuple[int, Row | ValueError]]:
        if self.places is None:
            return enumerate(parquet_rows(self.path, self.first, self.rows, wanted, self.reading), self.first)
        numbers = self.places[::2]
        begin = [number for number, first in zip(numbers, self.places[1::2]) if number == first]
        pictured = (
            begin if wanted is None else [begin[number] for number in sorted(wanted.pictures) if number < len(begin)]
        )
        return zip(numbers, scattered_rows(self.path, numbers, wanted, self.reading, pictured))

    def _text_rows(self, layout: Layout, opened: BinaryIO | None) -> Iterator[tuple[int, Row | ValueError]]:
        with (
            nullcontext(opened) if opened else open_file(self.path, WINDOW if self.places is None else NEARBY) as file
        ):
            if self.places is None:
                file.seek(self.offset)
                numbered = islice(records(self.path, file, layout), self.rows)
                yield from (
                    (number, row_of(record, layout)) for number, (_, record) in enumerate(numbered, self.first)
                )
                return
            for index in range(0, len(self.places), 2):
                file.seek(self.places[index + 1])
                _, record = next(records(self.path, file, layout, few=True))
                yield self.places[index], row_of(record, layout)


def as_read(
    rows: Iterable[tuple[int, Row | ValueError]],
    reading: Reading | None,
    wanted: Wanted | None,
    firsts: Mapping[int, int] | None = None,
) -> Iterator[tuple[int, Row | ValueError]]:
    if reading is None:
        return iter(rows)
    kept = tuple(wanted.columns or ()) if wanted else ()
    usual = ((number, row if isinstance(row, ValueError) else usual_row(row, reading, kept)) for number, row in rows)
    return grouped(usual, reading, kept, firsts) if reading.same or firsts is not None else usual


def table_records(rows: NumberedRows, wanted: Wanted | None = None) -> Iterator[Record]:
    """The rows as Records, by the keys that they have, so that one may come twice; all that they have unless less is wanted."""
    stem = split_suffix(rows.path)[0]
    named = ((row, f"{stem}-{number:09d}", f"{rows.path}:{number + 1}") for number, row in rows.numbered(wanted))
    return row_records(named, rows.folders or PictureFolders(os.path.dirname(rows.path)), wanted)


def pieces_of(
    rows: Callable[[], Iterable[tuple[int, int | None, str | None]]],
    size: int,
    piece: Callable[..., TableRows],
    reading: Reading | None,
) -> list[TableRows]:
    """Rows (number, place, picture) in pieces of so many pictures; those of a picture that do not stand together are put so."""
    if reading and reading.same == BYTES:
        return _side_by_side(rows(), size, partial(piece, reading=reading._replace(same="")))
    repeats, starts = Repeats(), []
    for number, place, name in rows():
        if repeats.is_new(name) and repeats.count % size == 1 % size:
            starts.append((number, place))
    if not repeats.rows:
        return []
    if repeats.come_again():
        return _side_by_side(rows(), size, partial(piece, reading=reading))
    if reading and repeats.count == repeats.rows:
        reading = reading._replace(same="")
    last = (repeats.count - 1) % size + 1
    ends = [*(number for number, _ in starts[1:]), repeats.rows]
    counts = [size] * (len(starts) - 1) + [last]
    return [
        piece(first=first, rows=end - first, count=count, offset=place, reading=reading)
        for (first, place), end, count in zip(starts, ends, counts)
    ]


def _side_by_side(
    rows: Iterable[tuple[int, int | None, str | None]], size: int, piece: Callable[..., TableRows]
) -> list[TableRows]:
    """The pieces, of rows that are put side by side on disk; a row without a place has the number of its picture's first row."""
    places: list[array] = []
    pictures = first = 0
    for number, place, begins in side_by_side((name, number, place) for number, place, name in rows):
        pictures += begins
        first = number if begins else first
        if begins and pictures % size == 1 % size:
            places.append(array("Q"))
        places[-1].extend((number, first if place is None else place))
    counts = [*[size] * (len(places) - 1), (pictures - 1) % size + 1]
    return [piece(first=each[0], rows=len(each) // 2, count=count, places=each) for each, count in zip(places, counts)]


def tell_of_groups(path: str, pieces: Sequence[TableRows]) -> None:
    rows, pictures = sum(piece.rows for piece in pieces), sum(piece.count for piece in pieces)
    if pictures < rows:
        logger.warning(
            "%s: %s rows are %s pictures with their captions; --no-group makes each row one",
            path,
            f"{rows:,}",
            f"{pictures:,}",
        )


def picture_name(row: Row | ValueError, reading: Reading) -> str | None:
    return None if isinstance(row, ValueError) else picture_named(usual_row(row, reading), reading)


# ---- text ------------------------------------------------------------------------------------------------------------


def text_pieces(path: str, file: BinaryIO, layout: Layout, reading: Reading | None) -> list[TableRows]:
    """The pieces of a text table, in whose rows pictures are grouped; warns of lines that are strange."""
    findings = Findings()

    def rows() -> Iterator[tuple[int, int, str | None]]:
        nonlocal findings
        findings, offset = Findings(), layout.start
        name_of = partial(picture_name_in, layout=layout, reading=reading) if reading and reading.same else None
        file.seek(offset)
        for number, (end, record) in enumerate(records(path, file, layout, findings)):
            yield number, offset, name_of and name_of(record)
            offset = end

    pieces = pieces_of(rows, ROWS_PER_SHARD, partial(TableRows, path, layout=layout), reading)
    if (settled := settle_quotes(path, file, layout, findings)) != layout:
        return text_pieces(path, file, settled, reading)
    tell_of_strange_lines(path, file, findings)
    tell_of_groups(path, pieces)
    return pieces


def picture_name_in(record: str | list[str] | ValueError, layout: Layout, reading: Reading) -> str | None:
    """`picture_named` of a text record; quickly where a JSON row has little in it."""
    if (
        isinstance(record, str)
        and reading.image == reading.same == "image"
        and not reading.captions
        and reading.key is None
    ):
        try:
            row = json_value(record.removeprefix("\ufeff"))
        except ValueError:
            return None
        if isinstance(row, dict) and len(row) == 2:
            image, text = row.get("image"), row.get(reading.text)
            if isinstance(image, str) and isinstance(text, str) and image[:1] != "[" != text[:1]:
                return image or None
    return picture_name(row_of(record, layout), reading)


def row_of(record: str | list[str] | ValueError, layout: Layout) -> Row | ValueError:
    """The row of a text record, or what is wrong with it."""
    if isinstance(record, str):
        try:
            return json_object(record.removeprefix("\ufeff"))
        except ValueError as error:
            return ValueError(f"not a line of JSON: {error}")
    if isinstance(record, ValueError):
        return record
    width = len(layout.header)
    if len(record) < width or any(record[width:]):  # spreadsheets write empty cells behind the last
        return ValueError(f"{len(record)} cells where the header has {width}")
    return dict(zip(layout.header, record))
