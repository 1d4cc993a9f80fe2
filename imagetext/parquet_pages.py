"""Check the sizes of Parquet pages before they are unpacked: a footer may lie, and a small page may hold gigabytes.

Page headers are structs in Thrift's compact protocol (`parquet.thrift`: PageHeader).
"""

import os
from collections.abc import Collection
from itertools import accumulate
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from imagetext import limits


def check_rows(parquet: pq.ParquetFile, file: BinaryIO) -> None:
    """Raise ValueError if the footer claims more rows than the file can hold."""
    rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    size = file.seek(0, os.SEEK_END)
    if any(count < 0 for count in rows) or sum(rows) > limits.PARQUET_ROWS * size:
        raise ValueError(f"its footer claims {sum(rows):,} rows in {size:,} bytes")


def check_pages(parquet: pq.ParquetFile, file: BinaryIO, group: int, columns: Collection[str]) -> None:
    """Raise ValueError if pages of these columns of a row group take too much memory, or have too many values.

    The limits are limits.PAGE and, for values in lists, limits.DOCUMENT_VALUES.
    """
    metadata, names = parquet.metadata.row_group(group), {*columns}
    size, values = 0, 0
    for index, path in enumerate(parquet.reader.column_paths):
        if names.isdisjoint(accumulate(path, "{}.{}".format)):
            continue
        chunk, column = metadata.column(index), ".".join(path)  # the chunk's own path may differ
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and chunk.dictionary_page_offset:
            start = chunk.dictionary_page_offset
        end, largest, counted = start + chunk.total_compressed_size, 0, 0
        while start < end and counted < chunk.num_values:
            file.seek(start)
            header = _struct(file)
            unpacked, packed = header[2], header[3]
            if unpacked < 0 or packed < 0:
                raise ValueError(f"a page of {unpacked:,} bytes")
            largest, start = max(largest, unpacked), file.tell() + packed
            counted += next((header[field][1] for field in (5, 8) if field in header), 0)
        size += 2 * largest if chunk.has_dictionary_page else largest  # a dictionary is held beside the pages
        values += counted if parquet.schema.column(index).max_repetition_level else 0
        if counted > max(chunk.num_values, metadata.num_rows):
            raise ValueError(f"pages of {column} have {counted:,} values, but the footer claims {chunk.num_values:,}")
    if size > limits.PAGE:
        raise ValueError(
            f"pages that are read together take {size:,} bytes, more than {limits.PAGE:,}; write it in smaller pages"
        )
    if values > limits.DOCUMENT_VALUES:
        raise ValueError(
            f"lists of {values:,} values in a row group, more than {limits.DOCUMENT_VALUES:,}; write it in smaller "
            "row groups"
        )


def _struct(file: BinaryIO, depth: int = 0) -> dict[int, Any]:
    """The numbers and structs in a struct, by field number; None for values of other types."""
    fields, number = {}, 0
    while byte := file.read(1)[0]:
        number = number + (byte >> 4) if byte >> 4 else _zigzag(file)
        fields[number] = _value(file, byte & 15, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int) -> Any:
    if kind in (1, 2) or depth > 8:  # true or false, which the kind itself encodes
        return None
    if kind in (4, 5, 6):
        return _zigzag(file)
    if kind == 12:
        return _struct(file, depth + 1)
    if kind in (3, 7, 8):  # a byte, a double, a byte string
        file.seek({3: 1, 7: 8}.get(kind) or _varint(file), os.SEEK_CUR)
        return None
    raise ValueError(f"a header of a page with a field of the kind {kind}")


def _zigzag(file: BinaryIO) -> int:
    number = _varint(file)
    return number >> 1 ^ -(number & 1)


def _varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)[0]
        number |= (byte & 127) << shift
        if byte < 128:
            return number
    raise ValueError("a header of a page with a number that has no end")
