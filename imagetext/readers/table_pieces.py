"""Pieces of a table, whose rows are read when they are iterated, and how a table of text is cut into pieces."""

import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import BinaryIO, Protocol

from imagetext.fields import json_object, json_value
from imagetext.picture_files import PictureFolders
from imagetext.readers.cells import settle_quotes
from imagetext.readers.grouping import PictureCounter, grouped, grouping_name, side_by_side
from imagetext.readers.parquet import parquet_class_names, parquet_rows, scattered_rows
from imagetext.readers.row_records import Row, RowSelection, row_records, with_unique_keys
from imagetext.readers.suffixes import split_suffix
from imagetext.readers.table_columns import BYTES, TableReading, usual_row
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import NEARBY, WINDOW, Findings
from imagetext.readers.text_tables import text_records, warn_of_undecodable_lines
from imagetext.sample import Record
from imagetext.stores import open_file

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 1000


class NumberedRows(Protocol):
    """Rows of a table, in whatever way they are read."""

    @property
    def path(self) -> str: ...

    @property
    def folders(self) -> PictureFolders | None: ...

    def numbered(self, selection: RowSelection | None = None) -> Iterator[tuple[int, Row | ValueError]]: ...


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table. Iterating reads them as `count` records; a bad row is a Record with an error."""

    path: str
    first: int  # the number of the first row in the whole table, counted from 0
    rows: int  # the number of rows
    count: int  # the number of records: fewer than rows if rows of one picture are joined
    offset: int = 0  # of the first row in bytes (text tables)
    layout: Layout | None = None  # of a text table
    reading: TableReading | None = None  # None: rows are returned unchanged
    folders: PictureFolders | None = None  # in which pictures may lie; None: only in the table's folder
    # If rows of a picture are not adjacent: pairs of a row's number, and its offset (text) or the number of the first
    # row of its picture (Parquet).
    places: array | None = field(default=None, compare=False)
    skipped: int | None = None  # records at the beginning that do not belong to this piece; None: there are no others

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def __len__(self) -> int:
        return self.count

    def numbered(
        self, selection: RowSelection | None = None, file: BinaryIO | None = None
    ) -> Iterator[tuple[int, Row | ValueError]]:
        """Yield the numbers of rows in the whole table, counted from 0, and the rows with usual names.

        Instead of a row, what is wrong with it as a whole may come.

        file: the table, if it is open already.
        """
        firsts = None if self.layout or self.places is None else dict(zip(self.places[::2], self.places[1::2]))
        rows = self._text_rows(self.layout, file) if self.layout else self._parquet_rows(selection)
        rows = usual_rows(rows, self.reading, selection, path=self.path, firsts=firsts)
        return rows if self.skipped is None else islice(rows, self.skipped, self.skipped + self.count)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None if there are none.

        Only Parquet may have them.
        """
        return None if self.layout else parquet_class_names(self.path, column)

    def _parquet_rows(self, selection: RowSelection | None) -> Iterator[tuple[int, Row | ValueError]]:
        if self.places is None:
            rows = parquet_rows(self.path, self.first, self.rows, selection=selection, reading=self.reading)
            return enumerate(rows, self.first)
        numbers = self.places[::2]
        first_rows = [number for number, first in zip(numbers, self.places[1::2]) if number == first]
        pictured = first_rows
        if selection is not None:
            pictured = [first_rows[index] for index in sorted(selection.pictures) if index < len(first_rows)]
        rows = scattered_rows(self.path, numbers, selection=selection, reading=self.reading, pictured=pictured)
        return zip(numbers, rows)

    def _text_rows(self, layout: Layout, opened: BinaryIO | None) -> Iterator[tuple[int, Row | ValueError]]:
        block = WINDOW if self.places is None else NEARBY
        with nullcontext(opened) if opened else open_file(self.path, block) as file:
            if self.places is None:
                file.seek(self.offset)
                numbered = enumerate(islice(text_records(self.path, file, layout), self.rows), self.first)
                yield from ((number, row_of(record, layout)) for number, (_, record) in numbered)
                return
            for index in range(0, len(self.places), 2):
                file.seek(self.places[index + 1])
                _, record = next(text_records(self.path, file, layout, nearby=True))
                yield self.places[index], row_of(record, layout)


def usual_rows(
    rows: Iterable[tuple[int, Row | ValueError]],
    reading: TableReading | None,
    selection: RowSelection | None,
    *,
    path: str,
    firsts: Mapping[int, int] | None = None,
) -> Iterator[tuple[int, Row | ValueError]]:
    """Give rows the usual names, and join those of one picture. Without `reading` they are returned unchanged."""
    if reading is None:
        return iter(rows)
    selected = tuple(selection.columns or ()) if selection else ()
    usual = (
        (number, row if isinstance(row, ValueError) else usual_row(row, reading, selected)) for number, row in rows
    )
    if not reading.group_by and firsts is None:
        return usual
    return grouped(usual, reading, selected, path=path, firsts=firsts)


def table_records(rows: NumberedRows, selection: RowSelection | None = None) -> Iterator[Record]:
    """Yield the rows as Records with the keys of the rows, so a key may come twice. selection: as in `row_records`."""
    stem = split_suffix(rows.path)[0]
    named = ((row, f"{stem}-{number:09d}", f"{rows.path}:{number + 1}") for number, row in rows.numbered(selection))
    return row_records(named, rows.folders or PictureFolders(os.path.dirname(rows.path)), selection)


def pieces_of(
    rows: Callable[[], Iterable[tuple[int, int | None, str | None]]],
    size: int,
    piece: Callable[..., TableRows],
    reading: TableReading | None,
) -> list[TableRows]:
    """Cut rows into pieces of `size` pictures. If rows of a picture are not adjacent, they are sorted.

    rows: called for an iterator over (number, place, name of the picture). piece: makes a piece.
    """
    if reading and reading.group_by == BYTES:
        return _sorted_pieces(rows(), size, partial(piece, reading=reading._replace(group_by="")))
    repeats, starts = PictureCounter(), []
    for number, place, name in rows():
        if repeats.is_new(name) and repeats.count % size == 1 % size:
            starts.append((number, place))
    if not repeats.rows:
        return []
    if repeats.are_scattered():
        return _sorted_pieces(rows(), size, partial(piece, reading=reading))
    if reading and repeats.count == repeats.rows:
        reading = reading._replace(group_by="")
    last = (repeats.count - 1) % size + 1
    ends = [*(number for number, _ in starts[1:]), repeats.rows]
    counts = [size] * (len(starts) - 1) + [last]
    return [
        piece(first=first, rows=end - first, count=count, offset=place, reading=reading)
        for (first, place), end, count in zip(starts, ends, counts)
    ]


def _sorted_pieces(
    rows: Iterable[tuple[int, int | None, str | None]], size: int, piece: Callable[..., TableRows]
) -> list[TableRows]:
    """The pieces of rows that are sorted on disk.

    The place of a row without one is the number of its picture's first row.
    """
    all_places: list[array] = []
    pictures = first = 0
    for number, place, is_first in side_by_side((name, number, place) for number, place, name in rows):
        pictures += is_first
        first = number if is_first else first
        if is_first and pictures % size == 1 % size:
            all_places.append(array("Q"))
        all_places[-1].extend((number, first if place is None else place))
    counts = [*[size] * (len(all_places) - 1), (pictures - 1) % size + 1]
    return [
        piece(first=places[0], rows=len(places) // 2, count=count, places=places)
        for places, count in zip(all_places, counts)
    ]


def warn_of_groups(path: str, pieces: Sequence[TableRows]) -> None:
    """Warn if rows of a table are joined into records."""
    rows, pictures = sum(piece.rows for piece in pieces), sum(piece.count for piece in pieces)
    if pictures < rows:
        logger.warning(
            "%s: %s rows are %s pictures with their captions; --no-group makes each row a record",
            path,
            f"{rows:,}",
            f"{pictures:,}",
        )


def picture_name(row: Row | ValueError, reading: TableReading) -> str | None:
    """`grouping_name` of a row that has not the usual names yet."""
    return None if isinstance(row, ValueError) else grouping_name(usual_row(row, reading), reading)


# ---- text ----------------------------------------------------------------------------------------------------------


def text_pieces(path: str, file: BinaryIO, layout: Layout, reading: TableReading | None) -> list[TableRows]:
    """Cut a text table into pieces, in which rows of one picture are joined. Warnings name lines with problems."""
    findings = Findings()

    def rows() -> Iterator[tuple[int, int, str | None]]:
        nonlocal findings
        findings, offset = Findings(), layout.start
        name_of = partial(picture_name_in, layout=layout, reading=reading) if reading and reading.group_by else None
        file.seek(offset)
        for number, (end, record) in enumerate(text_records(path, file, layout, findings=findings)):
            yield number, offset, name_of and name_of(record)
            offset = end

    pieces = pieces_of(rows, ROWS_PER_SHARD, piece=partial(TableRows, path, layout=layout), reading=reading)
    settled_layout = settle_quotes(path, file, layout, findings=findings)
    if settled_layout != layout:
        return text_pieces(path, file, settled_layout, reading=reading)
    warn_of_undecodable_lines(path, file, findings)
    warn_of_groups(path, pieces)
    return pieces


def picture_name_in(record: str | list[str] | ValueError, layout: Layout, reading: TableReading) -> str | None:
    """`grouping_name` of a text record. JSON rows of only a picture and a text take a fast path."""
    has_usual_names = reading.image == reading.group_by == "image" and not reading.captions and reading.key is None
    if isinstance(record, str) and has_usual_names:
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
    width, missing = len(layout.header), len(layout.header) - len(record)
    # Spreadsheets write empty cells after the last one of the header, and leave out empty cells at the end of a row.
    if missing > layout.optional or any(record[width:]):
        return ValueError(f"{len(record)} cells, but the header has {width}")
    return dict(zip(layout.header, record + [""] * missing))
