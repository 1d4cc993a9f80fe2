"""Read the rows of a Parquet file: whole rows or only some columns, all rows or only some of them.

Pictures are bytes, or bytes and path as `datasets` stores them, in a column with the name of a picture (img2dataset's
`jpg`). Or they are paths in one of the usual columns. In a file that was made from webdataset shards, `__key__`,
`txt`, `json` and `syn.json` have the same meaning as in a tar.
"""

import json
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from imagetext import limits
from imagetext.columns import is_column
from imagetext.fields import CAPTION_COLUMNS, FIELDS
from imagetext.parquet_pages import check_pages, check_rows
from imagetext.readers.arrow_rows import batch_rows, holds_text, is_bytes
from imagetext.readers.chats import CHATS
from imagetext.readers.row_records import IMAGE_COLUMNS, Row, RowSelection, size_of
from imagetext.readers.suffixes import PICTURE_SUFFIXES
from imagetext.readers.table_columns import PICTURES, TableReading
from imagetext.readers.text_layout import usual_name
from imagetext.stores import StoreError, open_file

# columns that hold more about captions, or show that we wrote the record
OF_CAPTIONS = (*FIELDS, "caption_fields", "json", "syn.json")
BOUNDED = {"buffer_size": 1 << 20, "pre_buffer": False, "thrift_string_size_limit": limits.PARQUET_TEXT}
OF_BYTES = (*PICTURE_SUFFIXES, "img", "image_bytes", "img_bytes", "image_data")  # names of columns of pictures
ROWS_WITH_BYTES, ROWS_WITHOUT = 64, 1000  # rows that are read together, with columns of bytes and without


class TooMuchHeld(ValueError):
    """Rows that must be held to sort them take too much memory. The file is not damaged."""


class _Opened(NamedTuple):
    parquet: pq.ParquetFile
    file: BinaryIO

    @property
    def schema(self) -> pa.Schema:
        return self.parquet.schema_arrow

    def group_sizes(self) -> list[int]:
        """The number of rows of each row group."""
        return [self.parquet.metadata.row_group(group).num_rows for group in range(self.parquet.num_row_groups)]


@contextmanager
def _opened(path: str) -> Iterator[_Opened]:
    try:
        with open_file(path) as file, pq.ParquetFile(file, **BOUNDED) as parquet:
            yield _Opened(parquet, file)
    except (StoreError, TooMuchHeld):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged Parquet file: {error}") from error


# ---- columns -------------------------------------------------------------------------------------------------------


def open_parquet(path: str, file: BinaryIO) -> tuple[pa.Schema, list[int]]:
    """Return the columns of a Parquet file, and the number of rows of each row group.

    Raises ValueError if it is not a readable Parquet file.
    """
    try:
        with pq.ParquetFile(file, **BOUNDED) as parquet:
            check_rows(parquet, file)
            return parquet.schema_arrow, _Opened(parquet, file).group_sizes()
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable Parquet file: {error}") from error


def parquet_class_names(path: str, column: str) -> dict[str, str] | None:
    """The names of the classes in a column, by their numbers, as `datasets` stores them; None if it has none."""
    with _opened(path) as opened:
        info = (opened.schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(info)["info"]["features"][column]["names"]
        return {str(number): str(name) for number, name in enumerate(names)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def picture_columns(schema: pa.Schema) -> list[str]:
    """The columns that hold pictures as `datasets` stores them: structs of bytes and path."""
    return [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and sorted(field.type[index].name for index in range(field.type.num_fields)) == ["bytes", "path"]
    ]


def json_names(schema: pa.Schema) -> list[str]:
    """The names of fields in the column `json` of a file that was made from webdataset shards."""
    kind = schema.field("json").type if schema.names.count("json") == 1 else pa.null()
    return [kind[index].name for index in range(kind.num_fields)] if pa.types.is_struct(kind) else []


def byte_columns(schema: pa.Schema) -> set[str]:
    """The columns that hold bytes, or structs of bytes and path."""
    return {field.name for field in schema if is_bytes(field.type)}.union(picture_columns(schema))


def usual_names(schema: pa.Schema, unchanged: Collection[str | None] = ()) -> list[str]:
    """The columns' names as `imagetext.readers.row_records` expects them.

    The column of pictures is called `image`, unless another column has that name.

    unchanged: names that stay as they are.
    """
    structs, names, with_bytes = picture_columns(schema), dict.fromkeys(schema.names), byte_columns(schema)
    picture = next((name for name in OF_BYTES if name in with_bytes), "")
    if not picture and not any(name in IMAGE_COLUMNS for name in names):
        picture = next(iter(structs), "")
    # As in a tar, `txt` comes before the captions in `json`, except in a record of ours, which has all captions there.
    in_json = json_names(schema)
    text = "captions" if in_json and "captions" not in in_json else "text"
    renamed = {picture: "image", "__key__": "key", "txt": text}
    usual = []
    for name in names:
        new_name = name if name in unchanged else renamed.get(name, name)
        usual.append(name if new_name in names else new_name)
    return usual


def _names_by_column(schema: pa.Schema, reading: TableReading | None) -> dict[str, str]:
    unchanged = (reading.image, *reading.captions, reading.key) if reading else ()
    return dict(zip(schema.names, usual_names(schema, unchanged)))


def _columns_read(
    schema: pa.Schema, selection: RowSelection | None, reading: TableReading | None, *, pictures: bool
) -> dict[str, str]:
    """The columns that are read, with their usual names.

    These are the selected ones, those that `reading` needs, and, if `pictures`, those of pictures.
    """
    names = _names_by_column(schema, reading)
    if selection is None:
        return names
    needed = {*(reading.columns if reading else ())}
    if pictures:
        needed |= {*IMAGE_COLUMNS, reading.image if reading else None}
    return {
        field.name: name
        for field, name in zip(schema, names.values())
        if name in needed or _is_selected(name, field.type, selection)
    }


def _is_selected(name: str, kind: pa.DataType, selection: RowSelection) -> bool:
    if name in (*selection.keys, *CAPTION_COLUMNS, *CHATS, *OF_CAPTIONS) or is_column(name):
        return True
    return holds_text(kind) if selection.columns is None else name in selection.columns


# ---- rows ----------------------------------------------------------------------------------------------------------


def parquet_rows(
    path: str,
    first: int,
    count: int,
    *,
    selection: RowSelection | None = None,
    reading: TableReading | None = None,
    strict: bool | None = None,
) -> Iterator[Row | ValueError]:
    """Yield rows `first` to `first + count`, or what is wrong with a row as a whole.

    selection: what is read of the rows (default: everything).
    reading: which columns are read as pictures, captions and keys.
    strict: whether a text that is not UTF-8 is an error of its row (default: only if everything is read).

    Raises ValueError if the file is damaged.
    """
    strict = selection is None if strict is None else strict
    row_number, end = first, first + count
    with _opened(path) as opened:
        start = 0
        for group, size in enumerate(opened.group_sizes()):
            if start + size > row_number and start < end:
                pictures = selection is None or any(
                    start <= first + number < start + size for number in selection.pictures
                )
                columns = _columns_read(opened.schema, selection, reading, pictures=pictures)
                rows = _group_rows(opened, group, columns, first=row_number - start, end=end - start, strict=strict)
                for row in rows:
                    row_number += 1
                    yield row
            start += size
    if row_number < end:
        raise ValueError(f"{path}: damaged Parquet file: it has {end - row_number} rows fewer than its footer claims")


def _group_rows(
    opened: _Opened, group: int, columns: dict[str, str], *, first: int, end: int, strict: bool
) -> Iterator[Row | ValueError]:
    """Yield the rows `first` to `end` of a row group, or to its end, with these columns by their usual names."""
    batch_start = 0
    size = ROWS_WITHOUT if byte_columns(opened.schema).isdisjoint(columns) else ROWS_WITH_BYTES
    for batch in _batches(opened, group, list(columns), size=size):
        part = batch.slice(max(0, first - batch_start), max(0, end - max(first, batch_start)))
        batch_start += batch.num_rows
        if part.num_rows:
            part = part.select(list(columns)).rename_columns(list(columns.values()))
            yield from map(_unfolded, batch_rows(part, strict=strict))
        if batch_start >= end:
            return


def rows_of_paths(path: str, reading: TableReading | None) -> Iterator[tuple[int, Row | ValueError]]:
    """Yield the numbers and rows of all row groups in which pictures may be paths.

    The rows have only the columns that name pictures. Bytes of pictures are read in groups in which some rows have
    paths and others bytes.
    """
    with _opened(path) as opened:
        schema = opened.schema
        names = _names_by_column(schema, reading)
        candidates = [
            name
            for name, usual in names.items()
            if not is_bytes(schema.field(name).type)
            and (usual_name(usual) in PICTURES or usual in CHATS or reading and name == reading.image)
        ]
        group_start = 0
        for group, size in enumerate(opened.group_sizes()):
            start, group_start = group_start, group_start + size
            paths = [name for name in candidates if _may_be_path(opened.parquet, group, name)]
            if not paths:
                continue
            columns = [name for name, usual in names.items() if name in paths or usual in FIELDS]
            for batch in _batches(opened, group, columns):
                batch = batch.select(columns).rename_columns([names[name] for name in columns])
                yield from enumerate(batch_rows(batch, strict=True), start)
                start += batch.num_rows


def _may_be_path(parquet: pq.ParquetFile, group: int, name: str) -> bool:
    """Whether pictures in a column may be paths.

    By the file's statistics, not if all have bytes or none has a path.
    """
    metadata = parquet.metadata.row_group(group)
    for index, chunk in enumerate(map(metadata.column, range(metadata.num_columns))):
        column, statistics = parquet.schema.column(index).path, chunk.statistics
        if not column.startswith(f"{name}.") or statistics is None or not statistics.has_null_count:
            continue
        all_have_bytes = column.endswith(".bytes") and statistics.null_count == 0
        none_has_path = column.endswith(".path") and statistics.null_count == chunk.num_values
        if all_have_bytes or none_has_path:
            return False
    return True


def scattered_rows(
    path: str,
    numbers: Sequence[int],
    *,
    selection: RowSelection | None = None,
    reading: TableReading | None = None,
    pictured: Sequence[int] = (),
) -> Iterator[Row | ValueError]:
    """Yield the rows of these numbers, in this order.

    All columns without bytes are held at the same time. Columns of bytes are read for the rows `pictured` only.

    pictured: some of the numbers, in ascending order; they must be in this order among `numbers`, too.

    Raises TooMuchHeld if more than limits.SAMPLE bytes would be held.
    """
    with _opened(path) as opened:
        columns = _columns_read(opened.schema, selection, reading, pictures=True)
        texts = reading.text_columns if reading else ()
        with_bytes = {
            name: columns.pop(name)
            for name in byte_columns(opened.schema)
            if name in columns and columns[name] not in texts
        }
        strict = selection is None
        rows, size = {}, 0
        for number, row in _numbered_rows(opened, sorted(numbers), columns, strict=strict):
            size, rows[number] = size + size_of(row), row
            if size > limits.SAMPLE:
                raise TooMuchHeld(
                    f"{path}: rows of one picture are not adjacent, and the rows of a shard take more than the "
                    f"{limits.SAMPLE:,} bytes that are held to sort them; --no-group makes each row a record"
                )
        pictures = _numbered_rows(opened, pictured if with_bytes else (), with_bytes, strict=strict)
        next_pictured, picture = next(pictures, (None, {}))
        for number in numbers:
            row = rows.pop(number)
            if number == next_pictured:
                if not isinstance(row, ValueError):
                    row = picture if isinstance(picture, ValueError) else {**row, **picture}
                next_pictured, picture = next(pictures, (None, {}))
            yield _unfolded(row)


def _numbered_rows(
    opened: _Opened, numbers: Sequence[int], columns: dict[str, str], *, strict: bool
) -> Iterator[tuple[int, Row | ValueError]]:
    """Yield the rows of these ascending numbers, with their numbers, and with these columns by their usual names."""
    batch_start = 0
    for group, size in enumerate(opened.group_sizes()):
        if bisect_left(numbers, batch_start) == bisect_left(numbers, batch_start + size):
            batch_start += size
            continue
        for batch in _batches(opened, group, list(columns)):
            batch_end = batch_start + batch.num_rows
            in_batch = numbers[bisect_left(numbers, batch_start) : bisect_left(numbers, batch_end)]
            rows = batch.take(pa.array([number - batch_start for number in in_batch], pa.int64()))
            rows = rows.select(list(columns)).rename_columns(list(columns.values()))
            yield from zip(in_batch, batch_rows(rows, strict=strict))
            batch_start = batch_end


def _batches(
    opened: _Opened, group: int, columns: list[str], *, size: int = ROWS_WITH_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group in batches. Texts that are in a dictionary of the file are held once."""
    parquet, file = opened
    try:
        check_pages(parquet, file, group=group, columns=columns)
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a header of a page cannot be read: {error}") from error
    metadata = parquet.metadata.row_group(group)
    with_dictionary = [
        index
        for index, chunk in enumerate(map(metadata.column, range(metadata.num_columns)))
        if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
    ]
    with pq.ParquetFile(file, metadata=parquet.metadata, read_dictionary=with_dictionary, **BOUNDED) as reader:
        yield from reader.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


def _unfolded(row: Row | ValueError) -> Row | ValueError:
    """The row with the fields in its `json` and the columns in its `syn.json`, if these are objects."""
    for name in ("json", "syn.json"):
        if isinstance(row, dict) and isinstance(row.get(name), dict):
            row = {**row.pop(name), **row}
    return row
