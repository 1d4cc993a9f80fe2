"""Reading tables of pictures and captions: JSON, CSV, TSV and Parquet in shards of rows, compressed ones in one each."""

import io
import logging
import os
import shutil
import tarfile
import tempfile
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import BinaryIO

import pyarrow as pa

from imagetext import limits
from imagetext.fields import json_value
from imagetext.picture_files import Picture, PictureFolders, check_inside
from imagetext.readers.grouping import Repeats, side_by_side
from imagetext.readers.parquet import (
    column_names,
    of_bytes,
    open_parquet,
    parquet_class_names,
    parquet_rows,
    picture_columns,
    rows_of_paths,
    scattered_rows,
)
from imagetext.readers.row_records import (
    KEY_COLUMNS,
    Row,
    Wanted,
    json_object,
    picture_of,
    row_records,
    with_unique_keys,
)
from imagetext.readers.table_columns import (
    BYTES,
    CAPTIONS,
    LOOKED_AT,
    PICTURES,
    Columns,
    Need,
    Reading,
    grouped,
    picture_named,
    reading_of,
    usual_row,
)
from imagetext.readers.tars import TAR_SUFFIXES, Unpacked
from imagetext.readers.text_tables import (
    NEARBY,
    WINDOW,
    Found,
    Layout,
    read_layout,
    records,
    settle_quotes,
    tell_of_strange_lines,
)
from imagetext.sample import Record
from imagetext.stores import StoreError, open_file

logger = logging.getLogger(__name__)

ROWS_PER_SHARD = 1000
BYTES_LOOKED_AT = 1000  # rows of Parquet, to see whether the bytes of a picture come again
COMPRESSIONS = {
    kind + end: codec
    for kind in (".jsonl", ".csv", ".tsv")
    for end, codec in ((".gz", "gzip"), (".zst", "zstd"), (".zstd", "zstd"))
}
TABLE_SUFFIXES = (
    ".jsonl",
    ".jsonlines",
    ".csv",
    ".tsv",
    ".parquet",
    *COMPRESSIONS,
)  # a list of rows in .json is one, too


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
        rows = self._text_rows(file) if self.layout else self._parquet_rows(wanted)
        rows = _as_read(rows, self.reading, wanted, firsts)
        return rows if self.skipped is None else islice(rows, self.skipped, self.skipped + self.count)

    def class_names(self, column: str) -> dict[str, str] | None:
        """The names of the classes in a column, by their numbers; None where that is no column of classes, as only Parquet has."""
        return None if self.layout else parquet_class_names(self.path, column)

    def _parquet_rows(self, wanted: Wanted | None) -> Iterator[tuple[int, Row | ValueError]]:
        if self.places is None:
            return enumerate(parquet_rows(self.path, self.first, self.rows, wanted, self.reading), self.first)
        numbers = self.places[::2]
        begin = [number for number, first in zip(numbers, self.places[1::2]) if number == first]
        pictured = begin if wanted is None else [begin[at] for at in sorted(wanted.pictures) if at < len(begin)]
        return zip(numbers, scattered_rows(self.path, numbers, wanted, self.reading, pictured))

    def _text_rows(self, opened: BinaryIO | None) -> Iterator[tuple[int, Row | ValueError]]:
        with (
            nullcontext(opened) if opened else open_file(self.path, WINDOW if self.places is None else NEARBY) as file
        ):
            if self.places is None:
                file.seek(self.offset)
                found = islice(records(self.path, file, self.layout), self.rows)
                yield from (
                    (number, _row(record, self.layout)) for number, (_, record) in enumerate(found, self.first)
                )
                return
            for at in range(0, len(self.places), 2):
                file.seek(self.places[at + 1])
                _, record = next(records(self.path, file, self.layout, few=True))
                yield self.places[at], _row(record, self.layout)


@dataclass(frozen=True)
class CompressedRows:
    """All rows of a compressed table, which cannot be entered in its midst and tells no length."""

    path: str
    layout: Layout
    reading: Reading | None = None
    folders: PictureFolders | None = None

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def numbered(self, wanted: Wanted | None = None) -> Iterator[tuple[int, Row | ValueError]]:
        """As `TableRows` does; where rows of a picture do not stand together, they are unpacked on disk."""
        if not self._is_scattered():
            rows = (_row(record, self.layout) for record in _unpacked_records(self.path, self.layout))
            yield from _as_read(enumerate(rows), self.reading, wanted)
            return
        with tempfile.TemporaryFile() as file:
            with _unpacked(self.path) as packed:
                shutil.copyfileobj(packed, file)
            for piece in _text_pieces(self.path, file, self.layout, self.reading):
                yield from piece.numbered(wanted, file)

    def _is_scattered(self) -> bool:
        """Whether a picture's row comes again behind others; ValueError where there is then more than may be unpacked."""
        if not (self.reading and self.reading.same):
            return False
        repeats, size = Repeats(), 0
        with _unpacked(self.path) as file:
            file.seek(self.layout.start)
            for size, record in records(self.path, file, self.layout):  # noqa: B007  (the last size is read below)
                repeats.is_new(_name_in(record, self.layout, self.reading))
        if (scattered := repeats.come_again()) and size > limits.UNPACKED:
            raise ValueError(
                f"{self.path}: rows of one picture stand apart, and all are {size:,} bytes, more than the "
                f"{limits.UNPACKED:,} that are unpacked to sort them; give the table unpacked, or --no-group makes each row one"
            )
        return scattered


def _as_read(
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


def table_records(rows: TableRows | CompressedRows, wanted: Wanted | None = None) -> Iterator[Record]:
    """The rows as Records, by the keys that they have, so that one may come twice; all that they have unless less is wanted."""
    stem = split_suffix(rows.path)[0]
    named = ((row, f"{stem}-{number:09d}", f"{rows.path}:{number + 1}") for number, row in rows.numbered(wanted))
    return row_records(named, rows.folders or PictureFolders(os.path.dirname(rows.path)), wanted)


def split_suffix(path: str) -> tuple[str, str]:
    """The name of a file without its suffix, and the suffix, `.jsonl.gz` and `.tar.gz` being one."""
    name = os.path.basename(path)
    double = next((suffix for suffix in (*COMPRESSIONS, *TAR_SUFFIXES) if name.lower().endswith(suffix)), None)
    return (name[: -len(double)], double) if double else (os.path.splitext(name)[0], os.path.splitext(name)[1].lower())


def split_table(
    path: str,
    images: tuple[str, ...] = (),
    columns: Columns = Columns(),
    needs: Collection[Need] = ("either",),
    check: bool = True,
) -> list[TableRows | CompressedRows]:
    """The rows of a table in pieces of ROWS_PER_SHARD records, read by the usual names of columns.

    Raises ValueError where the file is no table of pictures or captions, lacks what it needs, or names pictures outside `images`,
    which without `check` are left out. A compressed table is one piece.
    """
    return with_folders(path, split_rows(path, columns, needs), images, check)


def with_folders(
    path: str, parts: Sequence[TableRows | CompressedRows], images: tuple[str, ...], check: bool = True
) -> list[TableRows | CompressedRows]:
    """The parts of a table, with the folders that pictures may lie in; ValueError where the table names others, as `split_table` says."""
    folders = PictureFolders(os.path.dirname(path), images, strict=check)
    if check and parts:
        check_inside(path, _pictures(path, parts), folders)
    return [replace(part, folders=folders) for part in parts]


def _pictures(path: str, parts: Sequence[TableRows | CompressedRows]) -> Iterator[tuple[int, Picture]]:
    """The numbers of all rows that name a picture, and these."""
    whole = replace(parts[0], reading=parts[0].reading and parts[0].reading._replace(same=""))
    if isinstance(whole, CompressedRows):
        rows = whole.numbered()
    elif whole.layout:
        rows = replace(
            whole, first=0, rows=sum(part.rows for part in parts), offset=whole.layout.start, places=None
        ).numbered()
    else:
        rows = _as_read(rows_of_paths(path, whole.reading), whole.reading, None)
    return ((number, picture) for number, row in rows if (picture := picture_of(row)))


def split_rows(
    path: str,
    columns: Columns | None = None,
    needs: Collection[Need] = (),
    *,
    usual: Collection[str] = (),
    groups_of: int = 0,
) -> list[TableRows | CompressedRows]:
    """The rows of a table in pieces; as they stand, whatever they have, where no columns are asked for.

    usual: other names of columns that tell a delimiter. groups_of: pieces of Parquet are not of ROWS_PER_SHARD rows but of row
    groups, of so many rows together unless one alone has more. Raises ValueError where the file cannot be read, names two columns
    alike, or lacks what it needs.
    """
    kind = _kind(path)
    packed = kind in COMPRESSIONS
    opened = partial(_unpacked if packed else open_file, path)
    with opened() as file:
        if kind == ".parquet":
            return _parquet_pieces(path, file, columns, needs, groups_of)
        layout = read_layout(
            path,
            file,
            os.path.splitext(kind)[0] if packed else kind,
            (*PICTURES, *CAPTIONS, *usual, *(columns.names if columns else ())),
        )
    _check_names(path, layout.header)
    with opened() as file:  # anew: what is packed is read forwards
        file.seek(layout.start)
        rows = (_row(record, layout) for _, record in records(path, file, layout))
        header = layout.header if layout.delimiter else None
        reading = columns and reading_of(
            path, _first_rows(rows, Columns() if header else columns), columns, needs, header=header
        )
        if not packed:
            return _text_pieces(path, file, layout, reading)
    return [CompressedRows(path, _settled(path, layout), reading)]


def _good(rows: Iterable[Row | ValueError]) -> list[Row]:
    return [row for row in rows if not isinstance(row, ValueError)]


def _first_rows(rows: Iterable[Row | ValueError], columns: Columns) -> list[Row]:
    """The first rows but bad ones, and later ones that have columns that are named and that no row before them has."""
    rows = iter(rows)
    found = _good(islice(rows, LOOKED_AT))
    names, keys = {name for row in found for name in row}, {*columns.keys}
    lacking = {*filter(None, (columns.image, *columns.captions)), *(keys if keys.isdisjoint(names) else ())} - names
    while lacking and (row := next(rows, None)) is not None:
        if not isinstance(row, ValueError) and (new := lacking & row.keys()):
            found.append(row)
            lacking -= new | keys if new & keys else new
    return found


def _kind(path: str) -> str:
    """The table's format by its suffix; `.jsonlines` is another name of `.jsonl`."""
    kind = split_suffix(path)[1]
    return ".jsonl" if kind == ".jsonlines" else kind


def _check_names(path: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"{path}: columns named twice: {', '.join(repeated)}")


def _pieces(
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


def _tell_of_groups(path: str, pieces: Sequence[TableRows]) -> None:
    rows, pictures = sum(piece.rows for piece in pieces), sum(piece.count for piece in pieces)
    if pictures < rows:
        logger.warning(
            "%s: %s rows are %s pictures with their captions; --no-group makes each row one",
            path,
            f"{rows:,}",
            f"{pictures:,}",
        )


def _name(row: Row | ValueError, reading: Reading) -> str | None:
    return None if isinstance(row, ValueError) else picture_named(usual_row(row, reading), reading)


# ---- text ------------------------------------------------------------------------------------------------------------


def _text_pieces(path: str, file: BinaryIO, layout: Layout, reading: Reading | None) -> list[TableRows]:
    """What is strange about the file is told."""
    found = Found()

    def rows() -> Iterator[tuple[int, int, str | None]]:
        nonlocal found
        found, offset = Found(), layout.start
        name_of = partial(_name_in, layout=layout, reading=reading) if reading and reading.same else None
        file.seek(offset)
        for number, (end, record) in enumerate(records(path, file, layout, found)):
            yield number, offset, name_of and name_of(record)
            offset = end

    pieces = _pieces(rows, ROWS_PER_SHARD, partial(TableRows, path, layout=layout), reading)
    if (settled := settle_quotes(path, file, layout, found)) != layout:
        return _text_pieces(path, file, settled, reading)
    tell_of_strange_lines(path, file, found)
    _tell_of_groups(path, pieces)
    return pieces


def _name_in(record: str | list[str] | ValueError, layout: Layout, reading: Reading) -> str | None:
    """What tells whose caption the row of a record is, as `picture_named` says; of a JSON row that has little in it, quickly."""
    if (
        record.__class__ is str
        and reading.image == reading.same == "image"
        and not reading.captions
        and reading.key is None
    ):
        try:
            row = json_value(record.removeprefix("\ufeff"))
        except ValueError:
            return None
        if row.__class__ is dict and len(row) == 2:
            image, text = row.get("image"), row.get(reading.text)
            if image.__class__ is str and text.__class__ is str and image[:1] != "[" != text[:1]:
                return image or None
    return _name(_row(record, layout), reading)


def _row(record: str | list[str] | ValueError, layout: Layout) -> Row | ValueError:
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


@contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
    """What a compressed table holds, to be read forwards."""
    compression = COMPRESSIONS[_kind(path)]
    with open_file(path) as file:
        if not file.peek(1):
            raise ValueError(f"{path}: empty, which no {compression} file is")
        try:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
                yield io.BufferedReader(Unpacked(stream), WINDOW)
        except StoreError:
            raise
        except (pa.ArrowException, OSError, tarfile.ReadError) as error:
            raise ValueError(f"{path}: cut or damaged: {error}") from error


def _unpacked_records(path: str, layout: Layout) -> Iterator[str | list[str] | ValueError]:
    with _unpacked(path) as file:
        file.seek(layout.start)
        yield from (record for _, record in records(path, file, layout))


def _settled(path: str, layout: Layout) -> Layout:
    """The layout of a compressed table as all of it shows: only quotation marks need a look."""
    if not layout.delimiter:
        return layout
    found = Found()
    with _unpacked(path) as file:
        file.seek(layout.start)
        for _ in records(path, file, layout, found):
            pass
    with _unpacked(path) as file:
        return settle_quotes(path, file, layout, found)


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet_pieces(
    path: str, file: BinaryIO, columns: Columns | None, needs: Collection[Need], groups_of: int
) -> list[TableRows]:
    schema, sizes = open_parquet(path, file)
    _check_names(path, schema.names)
    count, reading = sum(sizes), None
    if columns is not None:
        names = column_names(schema, columns.names)
        if len(pictures := picture_columns(schema)) > 1 and not columns.image and "image" not in schema.names:
            logger.warning(
                "%s: pictures may stand in %s: --image-column names the column; %r is taken",
                path,
                " or ".join(map(repr, pictures)),
                pictures[0],
            )
        looked_at = Wanted(None, keys=(*KEY_COLUMNS, "image_id"))
        kept = Reading(columns.image, (*columns.captions, *columns.keys), "", None, ())
        first = _good(parquet_rows(path, 0, min(count, LOOKED_AT), looked_at, kept))
        image = columns.image or "image"
        with_bytes = any(name in of_bytes(schema) for name, usual in zip(schema.names, names) if usual == image)
        reading = reading_of(path, first, columns, needs, header=names, of_bytes=with_bytes)

    def rows() -> Iterator[tuple[int, None, str | None]]:
        strict = (
            reading.same == BYTES
        )  # for these rows the pieces remember which are one picture's, whoever reads them
        found = parquet_rows(path, 0, count, Wanted((), keys=("key", "uid")), reading, strict=strict)
        return ((number, None, _name(row, reading)) for number, row in enumerate(found))

    if reading and reading.same == BYTES and not _come_again(islice(rows(), BYTES_LOOKED_AT)):
        reading = reading._replace(same="")
    if reading and reading.same:
        pieces = _pieces(rows, groups_of or ROWS_PER_SHARD, partial(TableRows, path), reading)
        _tell_of_groups(path, pieces)
        return pieces
    places = _grouped(sizes, groups_of) if groups_of else _cut(count)
    return [TableRows(path, first, rows, rows, reading=reading) for first, rows in places]


def _come_again(rows: Iterable[tuple[int, None, str | None]]) -> bool:
    """Whether a picture has more than one of these rows."""
    names = [name for _, _, name in rows if name is not None]
    return len({*names}) < len(names)


def _cut(rows: int) -> list[tuple[int, int]]:
    """The first row and the number of rows of each piece of ROWS_PER_SHARD."""
    return [(first, min(ROWS_PER_SHARD, rows - first)) for first in range(0, rows, ROWS_PER_SHARD)]


def _grouped(sizes: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """The first row and the number of rows of row groups next to each other, so many rows together unless one has more."""
    pieces: list[tuple[int, int]] = []
    for size in filter(None, sizes):
        first, count = pieces[-1] if pieces else (0, 0)
        if pieces and count + size <= rows:
            pieces[-1] = (first, count + size)
        else:
            pieces.append((first + count, size))
    return pieces
