"""Rows of an Arrow batch as Python objects, within limits of memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagetext import limits
from imagetext.readers.row_records import Row


def batch_rows(batch: pa.RecordBatch, *, strict: bool) -> Iterator[Row | ValueError]:
    """Yield the rows of a batch. A row larger than limits.FILE, or with a cell that cannot be read, is an error.

    As many rows are built together as fit into limits.BATCH.

    strict: whether a text that is not UTF-8 is an error of its row; otherwise its unreadable bytes become U+FFFD.
    """
    sizes = sum(map(_cell_sizes, batch.columns), np.zeros(batch.num_rows, np.int64))
    step = max(1, limits.BATCH // max(1, int(sizes.max(initial=0))))
    for first in range(0, batch.num_rows, step):
        if sizes[first] > limits.FILE:  # limits.FILE is not below limits.BATCH, so the step is one row
            yield ValueError(f"a row of {sizes[first]:,} bytes, more than {limits.FILE:,}")
        else:
            yield from _python_rows(batch.slice(first, step), strict=strict)


def _cell_sizes(column: pa.Array) -> np.ndarray:
    """The bytes of texts and pictures in each cell of a column (R,), computed without building the cells."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return _cell_sizes(column.storage)
    if pa.types.is_dictionary(kind):
        sizes = np.append(_cell_sizes(column.dictionary), 0)
        return np.take(sizes, column.indices.fill_null(len(column.dictionary)).to_numpy())
    if pa.types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_cell_sizes(column.keys) + _cell_sizes(column.items))])
        return np.diff(ends[column.offsets.to_numpy()])
    if is_list(kind):
        ends = np.concatenate([[0], np.cumsum(_cell_sizes(column.flatten()))])
        lengths = column.value_lengths().fill_null(0).to_numpy().cumsum()
        return np.diff(ends[lengths], prepend=0)
    if pa.types.is_struct(kind):
        return sum(map(_cell_sizes, column.flatten()), np.zeros(len(column), np.int64))
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        column = column.cast(pa.large_binary())  # Arrow has no function for the lengths of views
    if is_text(kind) or is_bytes(kind) or pa.types.is_fixed_size_binary(kind):
        return pc.call_function("binary_length", [column]).fill_null(0).to_numpy().astype(np.int64)
    return np.zeros(len(column), np.int64)


def _python_rows(batch: pa.RecordBatch, *, strict: bool) -> list[Row | ValueError]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # for example a text or a time in one of the rows
        if isinstance(error, UnicodeDecodeError) and not strict:
            columns = map(_readable_cells, batch.columns)
            return [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]
        if batch.num_rows == 1:
            return [ValueError(f"a cell that cannot be read: {error}")]
    # The error is in some of the rows: read each row by itself.
    rows = []
    for number in range(batch.num_rows):
        rows += _python_rows(batch.slice(number, 1), strict=strict)
    return rows


def _readable_cells(column: pa.Array) -> list[Any]:
    """The cells of a column; in texts and lists of texts, bytes that are not UTF-8 become U+FFFD."""
    if not holds_text(column.type):
        return column.to_pylist()
    as_bytes = pa.large_list(pa.large_binary()) if is_list(column.type) else pa.large_binary()
    return _decoded(column.cast(as_bytes).to_pylist())


def _decoded(value: Any) -> Any:
    return list(map(_decoded, value)) if isinstance(value, list) else value and value.decode("utf-8", "replace")


# ---- types ---------------------------------------------------------------------------------------------------------


def holds_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts or lists of texts."""
    return is_text(kind.value_type if is_list(kind) else kind)


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind  # pandas writes categories as dictionaries
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def is_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def is_list(kind: pa.DataType) -> bool:
    of_any_size = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return of_any_size or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
