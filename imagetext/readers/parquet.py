"""The rows of a Parquet file, all of them or what is wanted of some.

Pictures are bytes, or `datasets`' bytes and path, in a column called as a picture is (img2dataset's `jpg`), or paths in one of the
usual columns. Of a file made of webdataset's shards `__key__`, `txt`, `json` and `syn.json` are what they are in a tar.
"""

import json
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagetext import limits
from imagetext.columns import is_column
from imagetext.fields import CAPTION_COLUMNS, FIELDS
from imagetext.parquet_pages import check_pages, check_rows
from imagetext.readers.chats import CHATS
from imagetext.readers.row_records import IMAGE_COLUMNS, Row, Wanted, size_of
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.table_columns import PICTURES, Reading
from imagetext.readers.text_layout import usual_name
from imagetext.stores import StoreError, open_file

OF_CAPTIONS = (*FIELDS, "caption_fields", "json", "syn.json")  # what says more of captions, and whose record this is
BOUNDED = {"buffer_size": 1 << 20, "pre_buffer": False, "thrift_string_size_limit": limits.PARQUET_TEXT}
OF_BYTES = (*PICTURE_SUFFIXES, "img", "image_bytes", "img_bytes", "image_data")  # names of columns of pictures


def open_parquet(path: str, file: BinaryIO) -> tuple[pa.Schema, list[int]]:
    """The columns, and the number of rows of each row group."""
    try:
        with pq.ParquetFile(file, **BOUNDED) as parquet:
            check_rows(parquet, file)
            groups = range(parquet.num_row_groups)
            return parquet.schema_arrow, [parquet.metadata.row_group(group).num_rows for group in groups]
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def parquet_class_names(path: str, column: str) -> dict[str, str] | None:
    """The names of the classes in a column, by their numbers, as `datasets` writes them into a file; None where it does not."""
    with _opened(path) as (parquet, _):
        said = (parquet.schema_arrow.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(said)["info"]["features"][column]["names"]
        return {str(number): str(name) for number, name in enumerate(names)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures as `datasets` does."""
    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and sorted(field.type[place].name for place in range(field.type.num_fields)) == ["bytes", "path"]
    ]


def of_bytes(schema: pa.Schema) -> set[str]:
    """The columns that hold bytes, alone or as `datasets` has them."""
    alone = {field.name for field in schema if _is_bytes(field.type)}
    return alone.union(picture_columns(schema))


def column_names(schema: pa.Schema, kept: Collection[str | None] = ()) -> list[str]:
    """The columns' names as `imagetext.readers.row_records` has them; `image` is that of the pictures, unless one is called so anyway.

    kept: names that stay as they are.
    """
    structs, names, with_bytes = picture_columns(schema), schema.names, of_bytes(schema)
    picture = next((name for name in OF_BYTES if name in with_bytes), "")
    if not picture and not any(name in IMAGE_COLUMNS for name in names):
        picture = next(iter(structs), "")
    usual = {old: new for old, new in ((picture, "image"), ("__key__", "key"), ("txt", "text")) if old not in kept}
    return [name if usual.get(name, name) in names else usual[name] for name in names]


def parquet_rows(
    path: str,
    first: int,
    count: int,
    wanted: Wanted | None,
    reading: Reading | None = None,
    *,
    strict: bool | None = None,
) -> Iterator[Row | ValueError]:
    """Rows `first` to `first + count`, or what is wrong with one as a whole; with their pictures where these are wanted.

    strict: whether a text that is no UTF-8 is its row's error; by default where all that rows have is wanted.
    """
    strict = wanted is None if strict is None else strict
    row_number, end = first, first + count
    with _opened(path) as (parquet, file):
        start = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if start + size > row_number and start < end:
                pictures = wanted is None or any(start <= first + number < start + size for number in wanted.pictures)
                for row in _group_rows(
                    parquet, file, group, wanted, reading, pictures, row_number - start, end - start, strict
                ):
                    row_number += 1
                    yield row
            start += size
    if row_number < end:
        raise ValueError(f"{path}: damaged Parquet file: {end - row_number} rows fewer than it says")


def rows_of_paths(path: str, reading: Reading | None) -> Iterator[tuple[int, Row | ValueError]]:
    """The numbers and rows of the row groups in which pictures may be paths, with what tells of these.

    Bytes of pictures are read where paths stand in the same group, and some rows have none.
    """
    with _opened(path) as (parquet, file):
        schema, number = parquet.schema_arrow, 0  # of the batch's first row
        names = dict(
            zip(schema.names, column_names(schema, (reading.image, *reading.captions, reading.key) if reading else ()))
        )
        places = [
            name
            for name, usual in names.items()
            if not _is_bytes(schema.field(name).type)
            and (usual_name(usual) in PICTURES or usual in CHATS or reading and name == reading.image)
        ]
        for group_number in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(group_number)
            start, number = number, number + group.num_rows
            paths = [name for name in places if _may_be_path(parquet, group, name)]
            if not paths:
                continue
            columns = [name for name, usual in names.items() if name in paths or usual in FIELDS]
            for batch in _batches(parquet, file, group_number, columns, 64):
                batch = batch.select(columns).rename_columns([names[name] for name in columns])
                yield from enumerate(_batch_rows(batch, strict=True), start)
                start += batch.num_rows


def _may_be_path(parquet: pq.ParquetFile, group: pq.RowGroupMetaData, name: str) -> bool:
    """Whether pictures in a column may be paths: not where all have bytes, or none a path, as far as the file tells."""
    for index, leaf in enumerate(map(group.column, range(group.num_columns))):
        place, told = parquet.schema.column(index).path, leaf.statistics
        if place.startswith(f"{name}.") and told is not None and told.has_null_count:
            if (
                place.endswith(".bytes")
                and told.null_count == 0
                or place.endswith(".path")
                and told.null_count == leaf.num_values
            ):
                return False
    return True


class TooMuchHeld(ValueError):
    """Rows that have to be sorted are larger than memory is to be filled with; the file is sound."""


def scattered_rows(
    path: str,
    numbers: Sequence[int],
    wanted: Wanted | None,
    reading: Reading | None,
    pictured: Sequence[int] = (),
) -> Iterator[Row | ValueError]:
    """The rows of these numbers, in this order; columns of bytes have only those `pictured`.

    All others are held at once: TooMuchHeld where these are more than limits.SAMPLE.
    pictured: some of the numbers, in ascending order, in which they come among the others, too.
    """
    with _opened(path) as (parquet, file):
        schema = parquet.schema_arrow
        columns = _columns_of(schema, wanted, reading, pictures=True)
        heavy = {name: columns.pop(name) for name in of_bytes(schema) if name in columns}
        strict = wanted is None
        rows, held = {}, 0
        for number, row in _numbered_rows(parquet, file, sorted(numbers), columns, strict):
            held, rows[number] = held + size_of(row), row
            if held > limits.SAMPLE:
                raise TooMuchHeld(
                    f"{path}: rows of one picture stand apart, and those of a shard are more than the {limits.SAMPLE:,} "
                    "bytes that are held to sort them; --no-group makes each row a record"
                )
        pictures = _numbered_rows(parquet, file, pictured if heavy else (), heavy, strict)
        next_pictured, more = next(pictures, (None, {}))
        for number in numbers:
            row = rows.pop(number)
            if number == next_pictured:
                if not isinstance(row, ValueError):
                    row = more if isinstance(more, ValueError) else {**row, **more}
                next_pictured, more = next(pictures, (None, {}))
            yield _unfolded(row)


def _numbered_rows(
    parquet: pq.ParquetFile, file: BinaryIO, numbers: Sequence[int], columns: dict[str, str], strict: bool
) -> Iterator[tuple[int, Row | ValueError]]:
    """The rows of these numbers, which ascend, with these columns, by what they are called; and their numbers."""
    batch_start = 0  # the number of its first row
    for group in range(parquet.num_row_groups):
        size = parquet.metadata.row_group(group).num_rows
        if bisect_left(numbers, batch_start) == bisect_left(numbers, batch_start + size):
            batch_start += size
            continue
        for batch in _batches(parquet, file, group, list(columns), 64):
            there = numbers[bisect_left(numbers, batch_start) : bisect_left(numbers, batch_start + batch.num_rows)]
            rows = batch.take(pa.array([number - batch_start for number in there], pa.int64()))
            rows = rows.select(list(columns)).rename_columns(list(columns.values()))
            yield from zip(there, _batch_rows(rows, strict=strict))
            batch_start += batch.num_rows


@contextmanager
def _opened(path: str) -> Iterator[tuple[pq.ParquetFile, BinaryIO]]:
    try:
        with open_file(path) as file, pq.ParquetFile(file, **BOUNDED) as parquet:
            yield parquet, file
    except (StoreError, TooMuchHeld):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged Parquet file: {error}") from error


def _batches(
    parquet: pq.ParquetFile, file: BinaryIO, group: int, columns: list[str], rows: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group in batches; texts that its dictionaries hold once are held once."""
    try:
        check_pages(parquet, file, group, columns)
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a header of a page cannot be read: {error}") from error
    said = parquet.metadata.row_group(group)
    held = [
        index
        for index, chunk in enumerate(map(said.column, range(said.num_columns)))
        if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
    ]
    with pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=held, **BOUNDED) as reader:
        yield from reader.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False)


def _columns_of(
    schema: pa.Schema, wanted: Wanted | None, reading: Reading | None, *, pictures: bool
) -> dict[str, str]:
    """The columns that are read, and what they are called: what is wanted, what the rows are told by, and pictures where these are."""
    names = dict(
        zip(schema.names, column_names(schema, (reading.image, *reading.captions, reading.key) if reading else ()))
    )
    if wanted is None:
        return names
    told_by = reading.columns if reading else ()
    of_pictures = (*IMAGE_COLUMNS, reading and reading.image) if pictures else ()
    return {
        field.name: name
        for field, name in zip(schema, names.values())
        if _is_wanted(name, field.type, wanted) or name in told_by or name in of_pictures
    }


def _group_rows(
    parquet: pq.ParquetFile,
    file: BinaryIO,
    group: int,
    wanted: Wanted | None,
    reading: Reading | None,
    pictures: bool,
    first: int,
    end: int,
    strict: bool,
) -> Iterator[Row | ValueError]:
    """Rows `first` to `end` of a row group, or to its own end; with what is wanted of them, and pictures where these are."""
    columns = _columns_of(parquet.schema_arrow, wanted, reading, pictures=pictures)
    number = 0  # of the batch's first row
    size = 1000 if of_bytes(parquet.schema_arrow).isdisjoint(columns) else 64
    for batch in _batches(parquet, file, group, list(columns), size):
        within = batch.slice(max(0, first - number), max(0, end - max(first, number)))
        number += batch.num_rows
        if within.num_rows:
            batch = within.select(list(columns)).rename_columns(list(columns.values()))
            yield from map(_unfolded, _batch_rows(batch, strict=strict))
        if number >= end:
            return


def _unfolded(row: Row | ValueError) -> Row | ValueError:
    """The row with the fields of its `json` and the columns of its `syn.json`, where these are objects, as its own."""
    for name in ("json", "syn.json"):
        if isinstance(row, dict) and isinstance(row.get(name), dict):
            row = {**row.pop(name), **row}
    return row


def _is_wanted(name: str, kind: pa.DataType, wanted: Wanted) -> bool:
    usual = name in (*wanted.keys, *CAPTION_COLUMNS, *OF_CAPTIONS) or is_column(name)
    return usual or (_holds_text(kind) if wanted.columns is None else name in wanted.columns)


def _batch_rows(batch: pa.RecordBatch, *, strict: bool) -> Iterator[Row | ValueError]:
    """The batch's rows, as many together as limits.BATCH allows; one that is larger than limits.FILE is an error."""
    sizes = sum(map(_sizes, batch.columns), np.zeros(batch.num_rows, np.int64))
    step = max(1, limits.BATCH // max(1, int(sizes.max(initial=0))))
    for first in range(0, batch.num_rows, step):
        if sizes[first] > limits.FILE:  # then it stands alone
            yield ValueError(f"a row of {sizes[first]:,} bytes, more than {limits.FILE:,}")
        else:
            yield from _plain_rows(batch.slice(first, step), strict=strict)


def _sizes(column: pa.Array) -> np.ndarray:
    """The bytes of texts and pictures in each cell (R,), without making any of them."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _sizes(column.storage)
    if pa.types.is_dictionary(kind):
        return np.take(
            np.append(_sizes(column.dictionary), 0), column.indices.fill_null(len(column.dictionary)).to_numpy()
        )
    if pa.types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(column.keys) + _sizes(column.items))])
        return np.diff(ends[column.offsets.to_numpy()])
    if _is_list(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(column.flatten()))])
        lengths = column.value_lengths().fill_null(0).to_numpy().cumsum()
        return np.diff(ends[lengths], prepend=0)
    if pa.types.is_struct(kind):
        return sum(map(_sizes, column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        column = column.cast(pa.large_binary())  # lengths of views are not told
    if _is_text(kind) or _is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return pc.call_function("binary_length", [column]).fill_null(0).to_numpy().astype(np.int64)
    return np.zeros(len(column), np.int64)


def _plain_rows(batch: pa.RecordBatch, *, strict: bool) -> list[Row | ValueError]:
    """The rows; a text that is no UTF-8 is its row's error where this is strict, and else as readable as it can be."""
    try:
        return batch.to_pylist()
    except (
        pa.ArrowException,
        ValueError,
        OverflowError,
    ) as error:  # text that is not UTF-8, a time out of range: some row's
        if isinstance(error, UnicodeDecodeError) and not strict:
            columns = map(_readable, batch.columns)
            return [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]
        if batch.num_rows == 1:
            return [ValueError(f"a cell that cannot be read: {error}")]
    return [row for number in range(batch.num_rows) for row in _plain_rows(batch.slice(number, 1), strict=strict)]


def _readable(column: pa.Array) -> list[Any]:
    """A column's cells, in texts and lists of them a mark for what is no UTF-8."""
    if not _holds_text(column.type):
        return column.to_pylist()
    as_bytes = pa.large_list(pa.large_binary()) if _is_list(column.type) else pa.large_binary()
    return _decoded(column.cast(as_bytes).to_pylist())


def _decoded(value: Any) -> Any:
    return list(map(_decoded, value)) if isinstance(value, list) else value and value.decode("utf-8", "replace")


def _holds_text(kind: pa.DataType) -> bool:
    return _is_text(kind.value_type if _is_list(kind) else kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas' categories
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    of_any_size = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return of_any_size or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
