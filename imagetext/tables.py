"""Reading tables of pictures and captions: JSONL, CSV, TSV and Parquet in shards of rows, compressed JSONL in one each."""

import csv
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa

from imagetext.parquet import open_parquet, parquet_rows
from imagetext.rows import CAPTION_COLUMNS, IMAGE_COLUMNS, Row, Wanted, json_object, row_records, with_unique_keys
from imagetext.sample import Record
from imagetext.stores import StoreError, open_file
from imagetext.tars import TAR_SUFFIXES

ROWS_PER_SHARD = 1000
COMPRESSIONS = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd", ".jsonl.zstd": "zstd"}
TABLE_SUFFIXES = (".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet", *COMPRESSIONS)


@dataclass(frozen=True)
class TableRows:
    """Rows `first` to `first + count` of a table, read when iterated; a row that is bad is a Record with its reason."""

    path: str
    first: int
    count: int
    offset: int = 0                 # bytes, where row `first` starts (text formats)
    header: tuple[str, ...] = ()    # CSV, TSV
    images: str | None = None       # the folder that pictures' paths start from; None: the table's own

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def __len__(self) -> int:
        return self.count

    def numbered(self, wanted: Wanted | None = None) -> Iterator[tuple[int, Row | ValueError]]:
        """Row numbers, from 0 in the whole table, and rows, or what is wrong with one as a whole."""
        if _kind(self.path) == ".parquet":
            return enumerate(parquet_rows(self.path, self.first, self.count, wanted), self.first)
        return enumerate(_text_rows(self, wanted), self.first)


@dataclass(frozen=True)
class CompressedRows:
    """All rows of a compressed table, which cannot be entered in its midst and tells no length."""

    path: str
    images: str | None = None

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def numbered(self, wanted: Wanted | None = None) -> Iterator[tuple[int, Row | ValueError]]:
        """As `TableRows` does."""
        return enumerate(map(_json_row, _decompressed_lines(self.path)))


def table_records(rows: TableRows | CompressedRows, wanted: Wanted | None = None) -> Iterator[Record]:
    """The rows as Records, by the keys that they have, so that one may come twice; all that they have unless less is wanted."""
    stem = split_suffix(rows.path)[0]
    named = ((row, f"{stem}-{number:09d}", f"{rows.path}:{number + 1}") for number, row in rows.numbered(wanted))
    return row_records(named, os.path.dirname(rows.path) if rows.images is None else rows.images, wanted)


def split_suffix(path: str) -> tuple[str, str]:
    """The name of a file without its suffix, and the suffix, `.jsonl.gz` and `.tar.gz` being one."""
    name = os.path.basename(path)
    double = next((suffix for suffix in (*COMPRESSIONS, *TAR_SUFFIXES) if name.lower().endswith(suffix)), None)
    return (name[:-len(double)], double) if double else (os.path.splitext(name)[0], os.path.splitext(name)[1].lower())


def split_table(path: str, images: str | None = None) -> list[TableRows | CompressedRows]:
    """The rows of a table in pieces of ROWS_PER_SHARD; raises ValueError where the file is no table of pictures or captions.

    A compressed table is one piece, and looked into only when that is read.
    """
    parts, names = split_rows(path)
    usual = (*IMAGE_COLUMNS, *CAPTION_COLUMNS)
    if names is not None and not any(name in usual or name.startswith("syn_text") for name in names):
        raise ValueError(f"{path}: no column of pictures ({', '.join(IMAGE_COLUMNS)}) or captions "
                         f"({', '.join(CAPTION_COLUMNS)}); it has {', '.join(map(repr, names)) or 'none'}")
    return [replace(part, images=images) for part in parts]


def split_rows(path: str, groups_of: int = 0) -> tuple[list[TableRows | CompressedRows], Sequence[str] | None]:
    """The rows of a table of whatever columns, in pieces, and the columns' names where the file has them in one place.

    groups_of: pieces of Parquet are not of ROWS_PER_SHARD rows but of row groups, of so many rows together unless one alone has
    more. Raises ValueError where the file cannot be read, or names two columns alike.
    """
    kind = _kind(path)
    if kind in COMPRESSIONS:
        return [CompressedRows(path)], None
    with open_file(path) as file:
        if kind == ".parquet":
            names, sizes = open_parquet(path, file)
            _check_names(path, names)
            places = _grouped(sizes, groups_of) if groups_of else _cut(sum(sizes))
            return [TableRows(path, *place) for place in places], names
        header = None
        if kind == ".jsonl":
            starts, rows = _starts(_json_lines(file))
        else:
            records = _csv_records(file, kind)
            end, header = next(records, (0, []))
            if isinstance(header, csv.Error):
                raise ValueError(f"{path}: header: {header}")
            _check_names(path, header)
            starts, rows = _starts(records, end)
    return [TableRows(path, *place, start, tuple(header or ())) for place, start in zip(_cut(rows), starts)], header


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


def _kind(path: str) -> str:
    """The table's format by its suffix; `.jsonlines` is another name of `.jsonl`."""
    kind = split_suffix(path)[1]
    return ".jsonl" if kind == ".jsonlines" else kind


def _check_names(path: str, names: Sequence[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: columns named twice: {', '.join(repeated)}")


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


def _text_rows(rows: TableRows, wanted: Wanted | None) -> Iterator[Row | ValueError]:
    kind = _kind(rows.path)
    with open_file(rows.path) as file:
        file.seek(rows.offset)
        records = _json_lines(file) if kind == ".jsonl" else _csv_records(file, kind)
        for _, (_, record) in zip(range(rows.count), records):
            yield _json_row(record) if kind == ".jsonl" else _csv_row(record, rows.header, wanted and wanted.columns or ())


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


def _csv_row(cells: list[str] | csv.Error, header: tuple[str, ...], asked: Collection[str]) -> Row | ValueError:
    """The row; a cell of a column of captions, and of those that are asked for, may be a list of texts, as JSON."""
    if isinstance(cells, csv.Error):
        return ValueError(f"not a line of CSV: {cells}")
    if len(cells) != len(header):
        return ValueError(f"{len(cells)} cells where the header has {len(header)}")
    row = dict(zip(header, cells))
    for name, cell in row.items():
        if cell.startswith("[") and (name in asked or name == "captions" or name.startswith("syn_text")):
            try:
                value = json.loads(cell)
            except (ValueError, RecursionError):
                continue
            if name not in asked or all(isinstance(text, str) for text in value):
                row[name] = value
    return row
