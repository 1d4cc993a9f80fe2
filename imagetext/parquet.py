"""The rows of a Parquet file, all of them or what is wanted of some."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext.rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, Wanted
from imagetext.sample import is_caption_column
from imagetext.stores import StoreError, open_file
from imagetext.table_columns import Reading

OF_CAPTIONS = ("error", "caption_scores", "caption_fields", "json")  # fields of records that say more of captions


def open_parquet(path: str, file: BinaryIO) -> tuple[pa.Schema, list[int]]:
    """The columns, and the number of rows of each row group."""
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.schema_arrow, [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures as `datasets` does."""
    return [field.name for field in schema if pa.types.is_struct(field.type)
            and sorted(field.type[at].name for at in range(field.type.num_fields)) == ["bytes", "path"]]


def parquet_rows(path: str, first: int, count: int, wanted: Wanted | None,
                 reading: Reading | None = None) -> Iterator[Row | ValueError]:
    """Rows `first` to `first + count`, or what is wrong with one as a whole; with their pictures where these are wanted."""
    at, end = first, first + count
    with _opened(path) as parquet:
        start = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if start + size > at and start < end:
                pictures = wanted is None or any(start <= first + number < start + size for number in wanted.pictures)
                for row in _group_rows(parquet, group, wanted, reading, pictures, at - start, end - start):
                    at += 1
                    yield row
            start += size
    if at < end:
        raise ValueError(f"{path}: damaged Parquet file: {end - at} rows fewer than it says")


def scattered_rows(path: str, numbers: Sequence[int], wanted: Wanted | None,
                   reading: Reading | None) -> Iterator[Row | ValueError]:
    """The rows of these numbers, in this order, of a table of texts."""
    found: dict[int, Row | ValueError] = {}
    with _opened(path) as parquet:
        start = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            there = sorted(number for number in numbers if start <= number < start + size)
            if there:
                columns = _columns_of(parquet.schema_arrow, wanted, reading, pictures=True)
                rows = parquet.read_row_group(group, columns=columns).take([number - start for number in there])
                found |= zip(there, (row for batch in rows.to_batches() for row in _batch_rows(batch, strict=wanted is None)))
            start += size
    return map(found.__getitem__, numbers)


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            yield parquet
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged Parquet file: {error}") from error


def _columns_of(schema: pa.Schema, wanted: Wanted | None, reading: Reading | None, *, pictures: bool) -> list[str]:
    """The names of the columns that are read: what is wanted, what the rows are told by, and pictures where these are."""
    if wanted is None:
        return schema.names
    told_by = reading.columns if reading else ()
    of_pictures = (*IMAGE_COLUMNS, *picture_columns(schema), reading and reading.image) if pictures else ()
    return [field.name for field in schema
            if _is_wanted(field.name, field.type, wanted) or field.name in told_by or field.name in of_pictures]


def _group_rows(parquet: pq.ParquetFile, group: int, wanted: Wanted | None, reading: Reading | None, pictures: bool,
                first: int, end: int) -> Iterator[Row | ValueError]:
    """Rows `first` to `end` of a row group, or to its own end; with what is wanted of them, and pictures where these are."""
    columns = _columns_of(parquet.schema_arrow, wanted, reading, pictures=pictures)
    number = 0  # of the batch's first row
    for batch in parquet.iter_batches(batch_size=64 if pictures else 1000, row_groups=[group], columns=columns):
        within = batch.slice(max(0, first - number), max(0, end - max(first, number)))
        number += batch.num_rows
        if within.num_rows:
            yield from _batch_rows(within.select(columns), strict=wanted is None)
        if number >= end:
            return


def _is_wanted(name: str, kind: pa.DataType, wanted: Wanted) -> bool:
    usual = name in (*wanted.keys, *CAPTION_COLUMNS, *OF_CAPTIONS) or is_caption_column(name)
    return usual or (_holds_text(kind) if wanted.columns is None else name in wanted.columns)


def _batch_rows(batch: pa.RecordBatch, *, strict: bool) -> list[Row | ValueError]:
    """The batch's rows; a text that is no UTF-8 is its row's error where this is strict, and else as readable as it can be."""
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is not UTF-8, a time out of range: some row's
        if isinstance(error, UnicodeDecodeError) and not strict:
            columns = map(_readable, batch.columns)
            return [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]
        if batch.num_rows == 1:
            return [ValueError(f"a cell that cannot be read: {error}")]
    return [row for number in range(batch.num_rows) for row in _batch_rows(batch.slice(number, 1), strict=strict)]


def _readable(column: pa.Array) -> list[Any]:
    """A column's cells, in texts and lists of them a mark for what is no UTF-8."""
    if not _holds_text(column.type):
        return column.to_pylist()
    return _decoded(column.cast(pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary()).to_pylist())


def _decoded(value: Any) -> Any:
    return list(map(_decoded, value)) if isinstance(value, list) else value and value.decode("utf-8", "replace")


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
