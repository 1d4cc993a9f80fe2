"""Reading tables of pictures and captions: JSONL, CSV, TSV and Parquet, in shards of rows."""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext.keys import SeenKeys
from imagetext.rows import CAPTION_COLUMNS, IMAGE_COLUMNS, row_sample
from imagetext.sample import Sample

ROWS_PER_SHARD = 1000
TABLE_SUFFIXES = (".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class TableRows:
    """Rows `first` to `first + count` of a table, read when iterated; a row that is bad is a Sample with its reason."""

    path: str
    first: int
    count: int
    offset: int = 0                 # bytes, where row `first` starts (text formats)
    header: tuple[str, ...] = ()    # CSV, TSV
    images: str | None = None       # the folder that pictures' paths start from; None: the table's own

    def __iter__(self) -> Iterator[Sample]:
        folder, base = os.path.split(self.path)
        keys = SeenKeys(self.path)
        for number, row in self.numbered():
            row_key = f"{os.path.splitext(base)[0]}-{number:09d}"
            yield row_sample(row, row_key, folder if self.images is None else self.images, f"{self.path}:{number + 1}", keys)

    def numbered(self) -> Iterator[tuple[int, dict | ValueError]]:
        """Row numbers, from 0 in the whole table, and rows, or what is wrong with one as a whole."""
        return enumerate(_parquet_rows(self) if _kind(self.path) == ".parquet" else _text_rows(self), self.first)


def split_table(path: str, images: str | None = None) -> list[TableRows]:
    """The rows of a table in pieces of ROWS_PER_SHARD; raises ValueError where the file is no table of pictures or captions."""
    parts, names = split_rows(path)
    if names is not None:
        _check_columns(path, names)
    return [replace(part, images=images) for part in parts]


def split_rows(path: str) -> tuple[list[TableRows], Sequence[str] | None]:
    """The rows of a table of whatever columns, in pieces, and the columns' names where the file has them in one place."""
    kind = _kind(path)
    if kind == ".parquet":
        try:
            with pq.ParquetFile(path) as file:
                names, rows = file.schema_arrow.names, file.metadata.num_rows
        except pa.ArrowException as error:
            raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
        return [TableRows(path, first, min(ROWS_PER_SHARD, rows - first)) for first in range(0, rows, ROWS_PER_SHARD)], names
    with open(path, "rb") as file:
        header = None
        if kind == ".jsonl":
            starts, rows = _starts(_json_lines(file))
        else:
            records = _csv_records(file, kind)
            end, header = next(records, (0, []))
            if isinstance(header, csv.Error):
                raise ValueError(f"{path}: header: {header}")
            starts, rows = _starts(records, end)
    return [TableRows(path, first, min(ROWS_PER_SHARD, rows - first), start, tuple(header or ()))
            for first, start in zip(range(0, rows, ROWS_PER_SHARD), starts)], header


def _kind(path: str) -> str:
    """The table's format by its suffix; `.jsonlines` is another name of `.jsonl`."""
    kind = os.path.splitext(path)[1].lower()
    return ".jsonl" if kind == ".jsonlines" else kind


def _check_columns(path: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: columns named twice: {', '.join(repeated)}")
    if not any(name in IMAGE_COLUMNS + CAPTION_COLUMNS or name.startswith("syn_text") for name in names):
        raise ValueError(f"{path}: no column of pictures ({', '.join(IMAGE_COLUMNS)}) or captions "
                         f"({', '.join(CAPTION_COLUMNS)}); it has {', '.join(map(repr, names)) or 'none'}")


# ---- rows of each format: a dict, or the error that the row is ---------------------------------------------------


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Offset behind, and bytes of, each line that is not blank."""
    position = file.tell()
    for line in file:
        position += len(line)
        if line.strip():
            yield position, line


def _csv_records(file: BinaryIO, kind: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Offset behind, and cells of, each record that is not blank; a record may span lines."""
    position = file.tell()

    def lines() -> Iterator[str]:
        nonlocal position
        for line in file:
            encoding = "utf-8-sig" if position == 0 else "utf-8"
            position += len(line)
            yield line.decode(encoding, "replace")

    reader = csv.reader(lines(), "excel-tab" if kind == ".tsv" else "excel")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells = error
        if cells:
            yield position, cells


def _starts(records: Iterator[tuple[int, Any]], start: int = 0) -> tuple[list[int], int]:
    """Byte offsets where each shard's first row starts, and the number of rows."""
    starts, count = [], 0
    for end, _ in records:
        if count % ROWS_PER_SHARD == 0:
            starts.append(start)
        start, count = end, count + 1
    return starts, count


def _text_rows(rows: TableRows) -> Iterator[dict | ValueError]:
    kind = _kind(rows.path)
    with open(rows.path, "rb") as file:
        file.seek(rows.offset)
        records = _json_lines(file) if kind == ".jsonl" else _csv_records(file, kind)
        for _, (_, record) in zip(range(rows.count), records):
            yield _json_row(record) if kind == ".jsonl" else _csv_row(record, rows.header)


def _json_row(line: bytes) -> dict | ValueError:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        return ValueError(f"not a line of JSON: {error}")
    return row if isinstance(row, dict) else ValueError(f"expected a JSON object, got {type(row).__name__}")


def _csv_row(cells: list[str] | csv.Error, header: tuple[str, ...]) -> dict | ValueError:
    if isinstance(cells, csv.Error):
        return ValueError(f"not a line of CSV: {cells}")
    if len(cells) != len(header):
        return ValueError(f"{len(cells)} cells where the header has {len(header)}")
    row = dict(zip(header, cells))
    for name, cell in row.items():
        if (name == "captions" or name.startswith("syn_text")) and cell.startswith("["):  # a list, as JSON
            try:
                row[name] = json.loads(cell)
            except (ValueError, RecursionError):
                pass
    return row


def _parquet_rows(rows: TableRows) -> Iterator[dict]:
    with pq.ParquetFile(rows.path) as file:
        groups, start, skip = [], 0, 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if end > rows.first and start < rows.first + rows.count:
                skip = skip if groups else rows.first - start
                groups.append(group)
            start = end
        left = rows.count
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=groups):
                batch, skip = batch.slice(skip), max(0, skip - batch.num_rows)
                yield from batch.slice(0, left).to_pylist()
                left -= min(left, batch.num_rows)
                if not left:
                    return
        except pa.ArrowException as error:
            raise ValueError(f"{rows.path}: damaged Parquet file: {error}") from error
