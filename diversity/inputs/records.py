"""Read records with captions from every kind of input, with the pictures of requested records only."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from diversity.columns import HUMAN
from imagetext import limits
from imagetext.fields import json_value, loose_texts, well_formed
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated_formats import without_canned
from imagetext.readers.folder_rows import FolderRows
from imagetext.readers.row_records import KEY_COLUMNS, RowSelection
from imagetext.readers.suffixes import split_suffix
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import TableRows, table_records
from imagetext.readers.tables import split_rows, with_folders
from imagetext.readers.text_layout import read_layout
from imagetext.readers.text_lines import LongLine, sized_lines
from imagetext.readers.text_tables import text_records
from imagetext.sample import Record, Shard
from imagetext.scenes.facts import is_scene
from imagetext.sources import is_list
from imagetext.stores import open_file, read_bytes

ROWS = 10_000  # approximate number of rows in a piece, where a file can be split
KEYS = (*KEY_COLUMNS, "image_id", "_id")


def captions_of(record: Record, column: str) -> tuple[str, ...]:
    """Return the captions of a record in a column, which may be any field with texts; () where the record has none.

    A blank text counts as no caption, but a blank text in a list is an empty caption. Blanks around a caption are left
    out, because nobody sees them, and they would change how well the captions compress.
    """
    captions = record.columns.get(column)
    if captions is None:
        captions = record.captions if column == HUMAN else loose_texts(record.meta.get(column))
    return tuple([caption.strip() for caption in captions])


def truncated_of(record: Record, column: str) -> tuple[bool, ...]:
    """Return which captions a length limit has cut; () unless the record says so for every caption of the column."""
    marks = record.scores.get(column, {}).get("truncated")
    if not isinstance(marks, list) or len(marks) != len(captions_of(record, column)):
        return ()
    return tuple(map(bool, marks))


def scene_of(record: Record) -> Mapping[str, Any] | None:
    """Return the description of a built-in picture; None for other pictures."""
    scene = record.meta.get("scene")
    return scene if is_scene(scene) else None


class Piece(NamedTuple):
    """Rows of one file that a process reads at a time.

    `read(columns, images)` yields every row of the piece in order. `columns` are the fields to read besides the
    original and the synthetic captions; None reads all fields with text. `images` holds the indices of the rows whose
    picture is read. It raises ValueError or OSError that names the file, where the file cannot be read to its end.
    """

    path: str
    read: Callable[[Sequence[str] | None, Collection[int]], Iterator[Record]]
    lines: bool = False  # whether the keys are line numbers, which do not identify pictures
    by_path: bool = False  # whether the pictures are files in the folders of `--images`
    samples: Any = None  # `Shard.samples`, for inputs that have them


def shard_rows(shard: Shard, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """Yield the rows of a shard, as in `Piece.read`; a folder reads the files of requested pictures only."""
    if isinstance(shard.samples, FolderRows):
        return shard.samples.records(images)
    return (record if index in images else replace(record, image=None) for index, record in enumerate(shard))


def table_pieces(
    path: str, table: Columns = Columns(), columns: Sequence[str] = (), folders: tuple[str, ...] | None = ()
) -> list[Piece]:
    """Split a table into pieces: JSON, CSV and TSV by bytes, Parquet by its row groups.

    columns: the caption columns that will be read. folders: where the picture files are; (): next to the table, None:
    no pictures are read. Raises ValueError where the table cannot be read, or names pictures outside these folders.
    """
    rows = split_rows(path, table, usual=(*KEYS, *columns), groups_of=ROWS)
    parts = with_folders(path, rows, folders or (), check=folders is not None)
    return [Piece(path, partial(_table_rows, part), by_path=bool(folders), samples=part) for part in parts]


def _table_rows(
    part: TableRows | CompressedRows, columns: Sequence[str] | None, images: Collection[int]
) -> Iterator[Record]:
    """Yield the rows of a part of a table, with the field `scene`, which describes built-in pictures."""
    # The reader reads the original captions in any case, and does not know them as a column.
    names = None if columns is None else [name for name in (*columns, "scene") if name != HUMAN]
    return table_records(part, RowSelection(names, images, KEYS))


def text_pieces(path: str, column: str) -> list[Piece]:
    """Split a text file with one caption per line into pieces; the captions become `column`."""
    starts, offset, count = [], 0, 0
    with open_file(path) as file:
        for size, _ in sized_lines(path, file):
            if count % ROWS == 0:
                starts.append(offset)
            offset, count = offset + size, count + 1
    pieces = []
    for number, start in enumerate(starts):
        first = number * ROWS
        read_rows = partial(_text_rows, path, column, first=first, count=min(ROWS, count - first), offset=start)
        pieces.append(Piece(path, read_rows, lines=True))
    return pieces


def _text_rows(
    path: str,
    column: str,
    columns: Sequence[str] | None,
    images: Collection[int],
    *,
    first: int,
    count: int,
    offset: int,
) -> Iterator[Record]:
    """Yield `count` lines as rows; the line with number `first` begins at the byte `offset`."""
    with open_file(path) as file:
        file.seek(offset)
        for number, (_, line) in zip(range(first, first + count), sized_lines(path, file)):
            if isinstance(line, LongLine):
                yield Record(f"{number:09d}", None, error=f"{path}:{number + 1}: {line}")
                continue
            text = line.decode("utf-8" if number else "utf-8-sig", "replace").rstrip("\r\n")
            yield Record(f"{number:09d}", None, columns={column: (well_formed(text),)})


def is_list_of_rows(path: str) -> bool:
    """Return whether a JSON file is a list of table rows and not of COCO results, judged by its first rows."""
    if not is_list(path):
        return False
    with open_file(path) as file:
        layout = read_layout(path, file, ".json", usual=())
        file.seek(layout.start)
        try:
            rows = [
                json.loads(text) for _, text in islice(text_records(path, file, layout), 100) if isinstance(text, str)
            ]
        except ValueError:  # the reader of the file reports it
            return False
    return bool(rows) and all(isinstance(row, dict) and not _is_result(row) for row in rows)


def document_pieces(path: str, column: str) -> list[Piece]:
    """Return a JSON document as one piece, because it is parsed as a whole; the captions become `column`."""
    return [Piece(path, partial(_document_rows, path, column))]


def _document_rows(path: str, column: str, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """Yield a row for each picture of a JSON document."""
    try:
        document = json_value(read_bytes(path, limits.DOCUMENT).decode("utf-8-sig", "replace"), limits.DOCUMENT_VALUES)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    annotated = isinstance(document, dict) and "annotations" in document
    rows = document["annotations"] if annotated else document
    if isinstance(rows, list) and any(_is_result(row) for row in rows):
        # Only annotations are cleaned of canned sentences: results are a model's own words, which are measured as they
        # are.
        yield from _result_rows(without_canned(rows, path) if annotated else rows, path, column)
    elif isinstance(rows, dict) and rows and all(map(_is_text_or_texts, rows.values())):
        for key, value in rows.items():
            yield Record(well_formed(key), None, columns={column: loose_texts(value)})
    else:
        raise ValueError(
            f'{path}: neither results of COCO [{{"image_id", "caption"}}], annotations {{"images", "annotations"}}, '
            f'{{"key": captions}} nor a list of rows; for a published set name its kind, as in karpathy:{path}'
        )


def _is_result(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("image_id"), int | str) and isinstance(row.get("caption"), str)


def _is_text_or_texts(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value]))


def _result_rows(rows: list[Any], path: str, column: str) -> Iterator[Record]:
    """Yield a row for each image_id with all its captions, and a failed row for each entry that is not a result."""
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if _is_result(row):
            captions.setdefault(well_formed(str(row["image_id"])), []).append(row["caption"])
        else:
            error = f"{path}: entry {number + 1} has no image_id with a caption"
            yield Record(f"{split_suffix(path)[0]}-{number:09d}", None, error=error)
    yield from (Record(key, None, columns={column: loose_texts(texts)}) for key, texts in captions.items())
