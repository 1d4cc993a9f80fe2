"""Cut tables of pictures and captions into pieces: JSON, CSV, TSV and Parquet. A compressed table is one piece."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import BinaryIO

from imagetext import limits
from imagetext.picture_files import PictureFolders, PictureReference, check_inside
from imagetext.readers.chats import CHATS
from imagetext.readers.compressed_tables import CompressedRows, settled_layout, unpacked
from imagetext.readers.parquet import (
    byte_columns,
    json_names,
    open_parquet,
    parquet_rows,
    picture_columns,
    rows_of_paths,
    usual_names,
)
from imagetext.readers.row_records import KEY_COLUMNS, Row, RowSelection, picture_of, size_of
from imagetext.readers.suffixes import COMPRESSIONS, split_suffix, table_kind
from imagetext.readers.table_columns import (
    BYTES,
    CAPTIONS,
    LOOKED_AT,
    PICTURES,
    Need,
    TableReading,
    reading_of,
    warn_of_several,
)
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import (
    ROWS_PER_SHARD,
    TableRows,
    picture_name,
    pieces_of,
    row_of,
    text_pieces,
    usual_rows,
    warn_of_groups,
)
from imagetext.readers.text_layout import possible_header, read_layout, usual_name
from imagetext.readers.text_tables import text_records
from imagetext.stores import open_file

logger = logging.getLogger(__name__)

BYTES_LOOKED_AT = 1000  # rows of Parquet that are read to see whether rows have the same picture


def is_text_with_header(path: str) -> bool:
    """Whether a `.txt` file is a table: its first line names columns of pictures and captions, as Flickr8k's does."""
    if split_suffix(path)[1] != ".txt":
        return False
    names = possible_header(path)
    return not names.isdisjoint(PICTURES) and not names.isdisjoint(CAPTIONS)


def split_table(
    path: str,
    images: tuple[str, ...] = (),
    columns: Columns = Columns(),
    needs: Collection[Need] = ("either",),
    check: bool = True,
) -> list[TableRows | CompressedRows]:
    """Cut a table into pieces of ROWS_PER_SHARD records, whose rows have the usual names of columns.

    images: the folders of the pictures (default: the folder of the table).
    check: whether pictures outside these folders are a ValueError; otherwise their records have no picture.

    Raises ValueError if the file is not a table of pictures or captions, lacks what it needs, or names pictures
    outside.
    """
    return with_folders(path, split_rows(path, columns, needs), images, check=check)


def with_folders(
    path: str, pieces: Sequence[TableRows | CompressedRows], images: tuple[str, ...], *, check: bool = True
) -> list[TableRows | CompressedRows]:
    """The pieces of a table, with the folders in which pictures may lie. Arguments and errors: as in `split_table`."""
    folders = PictureFolders(os.path.dirname(path), images, strict=check)
    if check and pieces:
        check_inside(path, _pictures(path, pieces), folders)
    return [replace(piece, folders=folders) for piece in pieces]


def _pictures(path: str, pieces: Sequence[TableRows | CompressedRows]) -> Iterator[tuple[int, PictureReference]]:
    """Yield the numbers of all rows of a table that name a picture file, and the references to these files."""
    first = pieces[0]
    reading = first.reading and first.reading._replace(group_by="")
    if isinstance(first, CompressedRows):
        rows = replace(first, reading=reading).numbered()
    elif first.layout:
        count = sum(piece.rows for piece in pieces if isinstance(piece, TableRows))
        table = replace(first, reading=reading, first=0, rows=count, offset=first.layout.start, places=None)
        rows = table.numbered()
    else:
        rows = usual_rows(rows_of_paths(path, reading), reading, None, path=path)
    return ((number, picture) for number, row in rows if (picture := picture_of(row)))


def split_rows(
    path: str,
    columns: Columns | None = None,
    needs: Collection[Need] = (),
    *,
    usual: Collection[str] = (),
    groups_of: int = 0,
) -> Sequence[TableRows | CompressedRows]:
    """Cut the rows of a table into pieces of ROWS_PER_SHARD.

    columns: which columns hold pictures, captions and keys (default: None, which returns rows unchanged).
    needs: what the table must have.
    usual: further names of columns by which a delimiter is recognised, and which a row must have.
    groups_of: if not 0, a piece of Parquet is one or more whole row groups, together at most this many rows, unless a
        single group has more.

    Raises ValueError if the file cannot be read, has two columns of the same name, or lacks what it needs.
    """
    kind = table_kind(path)
    packed = kind in COMPRESSIONS
    opened = partial(unpacked if packed else open_file, path)
    with opened() as file:
        if kind == ".parquet":
            return _parquet_pieces(path, file, columns, needs=needs, groups_of=groups_of)
        names = (*PICTURES, *CAPTIONS, *usual, *(columns.names if columns else ()))
        layout = read_layout(path, file, kind=os.path.splitext(kind)[0] if packed else kind, usual=names)
    _check_names(path, layout.header)
    with opened() as file:  # opened again, because a compressed file can only be read forwards
        file.seek(layout.start)
        reading = None
        if columns is not None:
            header = layout.header if layout.delimiter else None
            rows = (row_of(record, layout) for _, record in text_records(path, file, layout))
            first_rows = _first_rows(rows, Columns() if header else columns)
            reading = reading_of(path, first_rows, columns, needs=needs, header=header)
        if not packed:
            return text_pieces(path, file, layout, reading=reading)
    return [CompressedRows(path, settled_layout(path, layout), reading)]


def _first_rows(rows: Iterable[Row | ValueError], columns: Columns) -> list[Row]:
    """The first good rows, and later rows with columns that the user named and that no earlier row has."""
    rows = iter(rows)
    first_rows = _good_rows(islice(rows, LOOKED_AT))
    names, keys = {name for row in first_rows for name in row}, {*columns.keys}
    missing = {*filter(None, (columns.image, *columns.captions))} - names
    if keys.isdisjoint(names):
        missing |= keys
    while missing and (row := next(rows, None)) is not None:
        if isinstance(row, ValueError):
            continue
        added = missing & row.keys()
        if added:
            first_rows.append(row)
            missing -= added
            if added & keys:  # a table needs only one of the keys
                missing -= keys
    return first_rows


def _check_names(path: str, names: Sequence[str]) -> None:
    if repeated := sorted(name for name, count in Counter(names).items() if name and count > 1):
        raise ValueError(f"{path}: columns named twice: {', '.join(repeated)}")


def _good_rows(rows: Iterable[Row | ValueError]) -> list[Row]:
    """The rows without bad ones, until they take limits.BATCH together."""
    good, size = [], 0
    for row in rows:
        if not isinstance(row, ValueError):
            good.append(row)
            size += size_of(row)
        if size > limits.BATCH:
            break
    return good


# ---- Parquet -------------------------------------------------------------------------------------------------------


def _parquet_pieces(
    path: str, file: BinaryIO, columns: Columns | None, *, needs: Collection[Need], groups_of: int
) -> list[TableRows]:
    schema, group_sizes = open_parquet(path, file)
    _check_names(path, schema.names)
    count, reading = sum(group_sizes), None
    if columns is not None:
        names = usual_names(schema, columns.names)
        # As in a tar, captions in `json` count if there are no others, or if the user names them.
        has_captions = any(usual_name(name) in CAPTIONS for name in names)
        wanted = {*columns.captions, *(() if has_captions else (*CAPTIONS, *CHATS))}
        names += [name for name in json_names(schema) if name in wanted and name not in names]
        if len(pictures := picture_columns(schema)) > 1 and not columns.image and "image" not in schema.names:
            warn_of_several(path, "pictures", "--image-column", candidates=pictures)
        selection = RowSelection(None, keys=(*KEY_COLUMNS, "image_id"))
        named_columns = TableReading(
            image=columns.image, captions=(*columns.captions, *columns.keys), text="", key=None, lists=()
        )
        rows = parquet_rows(path, 0, min(count, LOOKED_AT), selection=selection, reading=named_columns)
        with_bytes, image = byte_columns(schema), columns.image or "image"
        of_bytes = any(name in with_bytes for name, usual in zip(schema.names, names) if usual == image)
        reading = reading_of(path, _good_rows(rows), columns, needs=needs, header=names, of_bytes=of_bytes)

    def picture_names(reading: TableReading) -> Iterator[tuple[int, None, str | None]]:
        # Strict, so that the same rows are joined whether everything is read later or only captions.
        strict = reading.group_by == BYTES
        selection = RowSelection((), keys=("key", "uid"))
        rows = parquet_rows(path, 0, count, selection=selection, reading=reading, strict=strict)
        return ((number, None, picture_name(row, reading)) for number, row in enumerate(rows))

    if reading and reading.group_by == BYTES and not _has_repeats(islice(picture_names(reading), BYTES_LOOKED_AT)):
        reading = reading._replace(group_by="")
    if reading and reading.group_by:
        pieces = pieces_of(
            partial(picture_names, reading),
            size=groups_of or ROWS_PER_SHARD,
            piece=partial(TableRows, path),
            reading=reading,
        )
        warn_of_groups(path, pieces)
        return pieces
    ranges = _join_groups(group_sizes, groups_of) if groups_of else _equal_ranges(count)
    return [TableRows(path, first, rows=rows, count=rows, reading=reading) for first, rows in ranges]


def _has_repeats(rows: Iterable[tuple[int, None, str | None]]) -> bool:
    """Whether a picture has more than one of these rows."""
    names = [name for _, _, name in rows if name is not None]
    return len({*names}) < len(names)


def _equal_ranges(rows: int) -> list[tuple[int, int]]:
    """The first row and the number of rows of each piece of ROWS_PER_SHARD."""
    return [(first, min(ROWS_PER_SHARD, rows - first)) for first in range(0, rows, ROWS_PER_SHARD)]


def _join_groups(sizes: Sequence[int], rows: int) -> list[tuple[int, int]]:
    """The first row and the number of rows of pieces of adjacent row groups.

    A piece has at most `rows` rows, unless a single group has more.
    """
    pieces: list[tuple[int, int]] = []
    for size in filter(None, sizes):
        first, count = pieces[-1] if pieces else (0, 0)
        if pieces and count + size <= rows:
            pieces[-1] = (first, count + size)
        else:
            pieces.append((first + count, size))
    return pieces
