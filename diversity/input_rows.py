"""Rows with captions from every kind of input, and with pictures where they are asked for."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from diversity.columns import HUMAN
from imagetext.folders import FolderRows
from imagetext.keys import SeenKeys
from imagetext.rows import (
    CAPTION_COLUMNS, IMAGE_COLUMNS, KEY_COLUMNS, caption_columns, is_caption_column, row_samples, well_formed,
)
from imagetext.sources import Shard
from imagetext.stores import StoreError, open_file, read_bytes
from imagetext.tables import TableRows, split_rows, split_suffix

ROWS = 10_000  # of a piece, about, where a file can be split
KEYS = (*KEY_COLUMNS, "image_id", "_id")


@dataclass(slots=True)
class Row:
    """What a row of an input says of its picture; `error`: why it has no picture or no captions."""

    key: str
    columns: Mapping[str, Any]      # captions by column, the originals as "captions", and whatever else the row has
    image: bytes | None = None      # encoded
    error: str = ""

    def captions(self, column: str) -> tuple[str, ...]:
        """The captions of a column; none where it has none. A blank text is none, a blank one in a list is an empty caption."""
        value = self.columns.get(column)
        if isinstance(value, str):
            return (_readable(value),) if value.strip() else ()
        if isinstance(value, list | tuple) and all(isinstance(text, str) or text is None for text in value):
            return tuple(_readable(text) for text in value if text is not None)
        return ()

    @property
    def scene(self) -> Mapping[str, Any] | None:
        """The description of a built-in picture."""
        scene = self.columns.get("scene")
        return scene if isinstance(scene, Mapping) and {"background", "objects"} <= scene.keys() else None

    def truncated(self, column: str) -> tuple[bool, ...]:
        """The marks of captions that a length limit cut, where the row has them for every caption."""
        scores = self.columns.get("caption_scores")
        scores = scores.get(column) if isinstance(scores, Mapping) else None
        marks = scores.get("truncated") if isinstance(scores, Mapping) else None
        return tuple(map(bool, marks)) if isinstance(marks, list) and len(marks) == len(self.captions(column)) else ()


class Piece(NamedTuple):
    """Rows of one file that a process reads at a time.

    `read(columns, images)` yields every row, in order: with `columns` beside the captions and synthetic captions (None: with
    all that hold text), and with the picture where its number in the piece is in `images`. It raises ValueError or OSError,
    naming the file, where that cannot be read on.
    """

    path: str
    read: Callable[[Sequence[str] | None, Collection[int]], Iterator[Row]]


def shard_rows(shard: Shard, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Row]:
    for number, sample in enumerate(shard):
        error, synthetic = sample.meta.get("error", ""), {}
        try:
            synthetic = caption_columns(sample.members.get("syn.json", b"{}"))
        except ValueError as problem:
            error = error or str(problem)
        found = {**sample.meta, HUMAN: sample.captions, **synthetic}
        yield Row(sample.key, found, sample.image if number in images else None, error)


def folder_rows(shard: Shard, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Row]:
    """With the pictures that are asked for; a row with an error is read without its picture."""
    rows = [(row if number in images else replace(row, error=row.error or "not asked for")) for number, row in
            enumerate(shard.samples.rows)]
    for row, asked, sample in zip(shard.samples.rows, rows, FolderRows(shard.samples.folder, tuple(rows))):
        error = sample.meta.get("error", "") if row is asked else row.error
        yield Row(sample.key, {**row.meta, HUMAN: sample.captions}, sample.image, error)


def table_pieces(path: str) -> list[Piece]:
    """JSONL, CSV and TSV in the pieces that `imagetext` makes of them."""
    parts, header = split_rows(path)
    _check_names(path, header or ())
    return [Piece(path, partial(_table_rows, part)) for part in parts]


def _table_rows(part: TableRows, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Row]:
    lists_are_json = part.path.lower().endswith((".csv", ".tsv"))
    for at, (number, row) in enumerate(part.numbered()):
        if lists_are_json and not isinstance(row, ValueError):
            row |= {name: _json_list(row[name]) for name in columns or () if name in row}
        yield _row(row, part.path, number, at in images)


def _row(row: dict[str, Any] | ValueError, path: str, number: int, with_image: bool) -> Row:
    """A row of a table, keyed as `imagetext` keys it."""
    if isinstance(row, ValueError):
        return Row(_row_key(path, number), {}, None, f"{path}:{number + 1}: {row}")
    image = next(row_samples([(row, "", path)], os.path.dirname(path), SeenKeys(path))).image if with_image else None
    key = next((str(row[name]) for name in KEYS if row.get(name) not in (None, "")), None) or _row_key(path, number)
    row.setdefault(HUMAN, next((row[name] for name in CAPTION_COLUMNS if name in row), None))
    if isinstance(rest := row.get("json"), str) and rest.startswith("{"):  # where our own Parquet files keep it
        try:
            row = {**json.loads(rest), **row}
        except (ValueError, RecursionError):
            pass
    error = row.get("error")
    return Row(_readable(key), row, image, error if isinstance(error, str) else "")


def _row_key(path: str, number: int) -> str:
    return f"{split_suffix(path)[0]}-{number:09d}"


def _json_list(cell: str) -> str | list[str]:
    """A CSV cell that holds a list of texts as JSON, or the text that it is."""
    try:
        value = json.loads(cell) if cell.startswith("[") else cell
    except (ValueError, RecursionError):
        return cell
    return value if isinstance(value, list) and _is_texts(value) else cell


def parquet_pieces(path: str) -> list[Piece]:
    """Row groups next to each other, of ROWS rows together unless one alone has more."""
    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            _check_names(path, parquet.schema_arrow.names)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error
    parts: list[list[int]] = []  # groups
    first, starts = 0, []
    for group, rows in enumerate(sizes):
        if not parts or sum(sizes[at] for at in parts[-1]) + rows > ROWS:
            parts.append([])
            starts.append(first)
        parts[-1].append(group)
        first += rows
    return [Piece(path, partial(_parquet_rows, path, groups, start)) for groups, start in zip(parts, starts) if first]


def _parquet_rows(path: str, groups: Sequence[int], first: int, columns: Sequence[str] | None,
                  images: Collection[int]) -> Iterator[Row]:
    usual = {*KEYS, *CAPTION_COLUMNS, "error", "caption_scores", "scene", "json", *(columns or ())}
    start = number = first
    try:
        with open_file(path) as file, pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            names = [field.name for field in schema if field.name in usual or is_caption_column(field.name)
                     or columns is None and _holds_text(field.type)]
            has_pictures = any(field.name in IMAGE_COLUMNS or pa.types.is_struct(field.type) for field in schema)
            for group in groups:
                end = start + parquet.metadata.row_group(group).num_rows
                wanted = [at for at in range(start, end) if at - first in images] if has_pictures and images else []
                pictures = {}
                if wanted:
                    samples = enumerate(TableRows(path, wanted[0], wanted[-1] - wanted[0] + 1), wanted[0])
                    pictures = {at: sample.image for at, sample in samples if at - first in images}
                for batch in parquet.iter_batches(batch_size=1000, row_groups=[group], columns=names):
                    for row in _batch_rows(batch):
                        found = _row(row, path, number, False)
                        found.image = pictures.get(number)
                        yield found
                        number += 1
                start = end
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged Parquet file: {error}") from error


def _batch_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check that its texts are UTF-8
        columns = [_decoded(column.cast(pa.list_(pa.binary()) if pa.types.is_list(column.type) else pa.binary()).to_pylist())
                   if _holds_text(column.type) else column.to_pylist() for column in batch.columns]
        return [dict(zip(batch.schema.names, cells)) for cells in zip(*columns)]


def _decoded(value: Any) -> Any:
    return list(map(_decoded, value)) if isinstance(value, list) else value and value.decode("utf-8", "replace")


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def text_pieces(path: str, column: str) -> list[Piece]:
    starts, offset, count = [], 0, 0
    with open_file(path) as file:
        for line in file:
            if count % ROWS == 0:
                starts.append(offset)
            offset, count = offset + len(line), count + 1
    return [Piece(path, partial(_text_rows, path, column, number * ROWS, min(ROWS, count - number * ROWS), start))
            for number, start in enumerate(starts)]


def _text_rows(path: str, column: str, first: int, count: int, offset: int, columns: Sequence[str] | None,
               images: Collection[int]) -> Iterator[Row]:
    with open_file(path) as file:
        file.seek(offset)
        for number, line in zip(range(first, first + count), file):
            text = line.decode("utf-8" if number else "utf-8-sig", "replace").rstrip("\r\n")
            yield Row(f"{number:09d}", {column: [text]})


def document_pieces(path: str, column: str) -> list[Piece]:
    return [Piece(path, partial(_document_rows, path, column))]


def _document_rows(path: str, column: str, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Row]:
    """Rows of a JSON document, which is read whole."""
    try:
        document = json.loads(read_bytes(path).decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    rows = document.get("annotations") if isinstance(document, dict) and "annotations" in document else document
    if isinstance(rows, list) and any(_is_result(row) for row in rows):
        yield from _result_rows(rows, path, column)
    elif isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows) and rows is document:
        yield from (_row(row, path, number, number in images) for number, row in enumerate(rows))
    elif isinstance(rows, dict) and rows and all(map(_is_texts, rows.values())):
        yield from (Row(_readable(key), {column: value}) for key, value in rows.items())
    else:
        raise ValueError(f'{path}: neither results of COCO [{{"image_id", "caption"}}], annotations {{"images", "annotations"}}, '
                         f'{{"key": captions}} nor a list of rows; for a published set say which, as in karpathy:{path}')


def _is_result(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("image_id"), int | str) and isinstance(row.get("caption"), str)


def _is_texts(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value]))


def _result_rows(rows: list[Any], path: str, column: str) -> Iterator[Row]:
    """A row for each image_id with all its captions, and one for each entry that is none."""
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if _is_result(row):
            captions.setdefault(_readable(str(row["image_id"])), []).append(row["caption"])
        else:
            yield Row(_row_key(path, number), {}, None, f"{path}: entry {number + 1} is no image_id with a caption")
    yield from (Row(key, {column: texts}) for key, texts in captions.items())


def _check_names(path: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: columns named twice: {', '.join(twice)}")


def _readable(text: str) -> str:
    return text if text.isascii() else well_formed(text)
