"""Tables of pictures and captions: JSON, CSV, TSV and Parquet in shards of rows, compressed ones in one each."""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import BinaryIO

from imagetext import limits
from imagetext.picture_files import PictureFolders, PictureReference, check_inside
from imagetext.readers.compressed_tables import CompressedRows, settled_layout, unpacked
from imagetext.readers.parquet import (
    column_names,
    of_bytes,
    open_parquet,
    parquet_rows,
    picture_columns,
    rows_of_paths,
)
from imagetext.readers.row_records import KEY_COLUMNS, Row, Wanted, picture_of, size_of
from imagetext.readers.suffixes import COMPRESSIONS, table_kind
from imagetext.readers.table_columns import (
    BYTES,
    CAPTIONS,
    LOOKED_AT,
    PICTURES,
    Columns,
    Need,
    Reading,
    reading_of,
)
from imagetext.readers.table_pieces import (
    ROWS_PER_SHARD,
    TableRows,
    as_read,
    picture_name,
    pieces_of,
    row_of,
    tell_of_groups,
    text_pieces,
)
from imagetext.readers.text_layout import read_layout
from imagetext.readers.text_tables import records
from imagetext.stores import open_file

logger = logging.getLogger(__name__)

BYTES_LOOKED_AT = 1000  # rows of Parquet, to see whether the bytes of a picture come again


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


def _pictures(path: str, parts: Sequence[TableRows | CompressedRows]) -> Iterator[tuple[int, PictureReference]]:
    """The numbers of all rows that name a picture, and these."""
    whole = replace(parts[0], reading=parts[0].reading and parts[0].reading._replace(same=""))
    if isinstance(whole, CompressedRows):
        rows = whole.numbered()
    elif whole.layout:
        rows = replace(
            whole,
            first=0,
            rows=sum(part.rows for part in parts if isinstance(part, TableRows)),
            offset=whole.layout.start,
            places=None,
        ).numbered()
    else:
        rows = as_read(rows_of_paths(path, whole.reading), whole.reading, None)
    return ((number, picture) for number, row in rows if (picture := picture_of(row)))


def split_rows(
    path: str,
    columns: Columns | None = None,
    needs: Collection[Need] = (),
    *,
    usual: Collection[str] = (),
    groups_of: int = 0,
) -> Sequence[TableRows | CompressedRows]:
    """The rows of a table in pieces; as they stand, whatever they have, where no columns are asked for.

    usual: other names of columns that tell a delimiter. groups_of: pieces of Parquet are not of ROWS_PER_SHARD rows but of row
    groups, of so many rows together unless one alone has more. Raises ValueError where the file cannot be read, names two columns
    alike, or lacks what it needs.
    """
    kind = table_kind(path)
    packed = kind in COMPRESSIONS
    opened = partial(unpacked if packed else open_file, path)
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
        rows = (row_of(record, layout) for _, record in records(path, file, layout))
        header = layout.header if layout.delimiter else None
        reading = columns and reading_of(
            path, _first_rows(rows, Columns() if header else columns), columns, needs, header=header
        )
        if not packed:
            return text_pieces(path, file, layout, reading)
    return [CompressedRows(path, settled_layout(path, layout), reading)]


def _first_rows(rows: Iterable[Row | ValueError], columns: Columns) -> list[Row]:
    """The first rows but bad ones, and later ones that have columns that are named and that no row before them has."""
    rows = iter(rows)
    first_rows = _good(islice(rows, LOOKED_AT))
    names, keys = {name for row in first_rows for name in row}, {*columns.keys}
    lacking = {*filter(None, (columns.image, *columns.captions)), *(keys if keys.isdisjoint(names) else ())} - names
    while lacking and (row := next(rows, None)) is not None:
        if not isinstance(row, ValueError) and (new := lacking & row.keys()):
            first_rows.append(row)
            lacking -= new | keys if new & keys else new
    return first_rows


def _check_names(path: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if name and names.count(name) > 1}):
        raise ValueError(f"{path}: columns named twice: {', '.join(repeated)}")


def _good(rows: Iterable[Row | ValueError]) -> list[Row]:
    """The rows but bad ones, and no more of them where these take limits.BATCH together."""
    good, size = [], 0
    for row in rows:
        if not isinstance(row, ValueError):
            good.append(row)
            size += size_of(row)
        if size > limits.BATCH:
            break
    return good


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

    def named(reading: Reading) -> Iterator[tuple[int, None, str | None]]:
        strict = reading.same == BYTES  # the pieces remember which rows are one picture's, whoever reads them
        numbered = parquet_rows(path, 0, count, Wanted((), keys=("key", "uid")), reading, strict=strict)
        return ((number, None, picture_name(row, reading)) for number, row in enumerate(numbered))

    if reading and reading.same == BYTES and not _come_again(islice(named(reading), BYTES_LOOKED_AT)):
        reading = reading._replace(same="")
    if reading and reading.same:
        pieces = pieces_of(partial(named, reading), groups_of or ROWS_PER_SHARD, partial(TableRows, path), reading)
        tell_of_groups(path, pieces)
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
