"""Reading tables of pictures and captions: JSONL, CSV, TSV and Parquet in shards of rows, compressed JSONL in one each."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext.keys import SeenKeys
from imagetext.rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, json_object, row_samples
from imagetext.sample import Sample
from imagetext.stores import StoreError, open_file

ROWS_PER_SHARD = 1000
COMPRESSIONS = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd", ".jsonl.zstd": "zstd"}
TABLE_SUFFIXES = (".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet", *COMPRESSIONS)


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
        return _samples(self)

    def __len__(self) -> int:
        return self.count

    def numbered(self) -> Iterator[tuple[int, Row | ValueError]]:
        """Row numbers, from 0 in the whole table, and rows, or what is wrong with one as a whole."""
        return enumerate(_parquet_rows(self) if _kind(self.path) == ".parquet" else _text_rows(self), self.first)


@dataclass(frozen=True)
class CompressedRows:
    """All rows of a compressed table, which cannot be entered in its midst and tells no length."""

    path: str
    images: str | None = None

    def __iter__(self) -> Iterator[Sample]:
        return _samples(self)

    def numbered(self) -> Iterator[tuple[int, Row | ValueError]]:
        """As `TableRows` does."""
        return enumerate(map(_json_row, _decompressed_lines(self.path)))


def _samples(rows: TableRows | CompressedRows) -> Iterator[Sample]:
    stem = split_suffix(rows.path)[0]
    named = ((row, f"{stem}-{number:09d}", f"{rows.path}:{number + 1}") for number, row in rows.numbered())
    return row_samples(named, os.path.dirname(rows.path) if rows.images is None else rows.images, SeenKeys(rows.path))


def split_suffix(path: str) -> tuple[str, str]:
    """The name of a file without its suffix, and the suffix, `.jsonl.gz` being one."""
    name = os.path.basename(path)
    compressed = next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), None)
    return (name[:-len(compressed)], compressed) if compressed else (os.path.splitext(name)[0], os.path.splitext(name)[1].lower())


def split_table(path: str, images: str | None = None) -> list[TableRows | CompressedRows]:
    """The rows of a table in pieces of ROWS_PER_SHARD; raises ValueError where the file is no table of pictures or captions.

    A compressed table is one piece, and looked into only when that is read.
    """
    parts, names = split_rows(path)
    if names is not None:
        _check_columns(path, names)
    return [replace(part, images=images) for part in parts]


def split_rows(path: str) -> tuple[list[TableRows | CompressedRows], Sequence[str] | None]:
    """The rows of a table of whatever columns, in pieces, and the columns' names where the file has them in one place."""
    kind = _kind(path)
    if kind in COMPRESSIONS:
        return [CompressedRows(path)], None
    with open_file(path) as file:
        if kind == ".parquet":
            names, rows = _open_parquet(path, file)
            return [TableRows(path, first, min(ROWS_PER_SHARD, rows - first)) for first in range(0, rows, ROWS_PER_SHARD)], names
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
    kind = split_suffix(path)[1]
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


def _text_rows(rows: TableRows) -> Iterator[Row | ValueError]:
    kind = _kind(rows.path)
    with open_file(rows.path) as file:
        file.seek(rows.offset)
        records = _json_lines(file) if kind == ".jsonl" else _csv_records(file, kind)
        for _, (_, record) in zip(range(rows.count), records):
            yield _json_row(record) if kind == ".jsonl" else _csv_row(record, rows.header)


def _decompressed_lines(path: str) -> Iterator[bytes]:
    compression = COMPRESSIONS[_kind(path)]
    with open_file(path) as file:
        if not file.peek(1):
            raise ValueError(f"{path}: empty, which no {compression} file is")
        try:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
                yield from filter(bytes.strip, io.BufferedReader(stream, 1 << 20))
        except StoreError:
            raise
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: cut or damaged: {error}") from error


def _json_row(line: bytes) -> Row | ValueError:
    try:
        return json_object(line.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        return ValueError(f"not a line of JSON: {error}")


def _csv_row(cells: list[str] | csv.Error, header: tuple[str, ...]) -> Row | ValueError:
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


# ---- Parquet -----------------------------------------------------------------------------------------------------


def _open_parquet(path: str, file: BinaryIO) -> tuple[list[str], int]:
    """The columns' names, `image` for that of pictures, and the number of rows."""
    try:
        with pq.ParquetFile(file) as parquet:
            return _column_names(parquet.schema_arrow), parquet.metadata.num_rows
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def _column_names(schema: pa.Schema) -> list[str]:
    """The columns' names, the first of `datasets`' pictures being `image` where no other has a name of pictures."""
    names = list(schema.names)
    if not any(name in IMAGE_COLUMNS for name in names):
        picture = next((number for number, kind in enumerate(schema.types) if pa.types.is_struct(kind)
                        and sorted(kind[at].name for at in range(kind.num_fields)) == ["bytes", "path"]), None)
        names = [name if number != picture else "image" for number, name in enumerate(names)]
    return names


def _parquet_rows(rows: TableRows) -> Iterator[Row | ValueError]:
    try:
        with open_file(rows.path) as file, pq.ParquetFile(file) as parquet:
            names = _column_names(parquet.schema_arrow)
            groups, start, skip = [], 0, 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                if end > rows.first and start < rows.first + rows.count:
                    skip = skip if groups else rows.first - start
                    groups.append(group)
                start = end
            left = rows.count
            for batch in parquet.iter_batches(batch_size=64, row_groups=groups):
                batch, skip = batch.slice(skip), max(0, skip - batch.num_rows)
                yield from _batch_rows(batch.slice(0, left).rename_columns(names))
                left -= min(left, batch.num_rows)
                if not left:
                    return
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{rows.path}: damaged Parquet file: {error}") from error
    raise ValueError(f"{rows.path}: damaged Parquet file: {left} rows fewer than it says")


def _batch_rows(batch: pa.RecordBatch) -> list[Row | ValueError]:
    try:
        return batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:  # text that is not UTF-8, a time out of range: some row's
        if batch.num_rows == 1:
            return [ValueError(f"a cell that cannot be read: {error}")]
    return [row for number in range(batch.num_rows) for row in _batch_rows(batch.slice(number, 1))]
