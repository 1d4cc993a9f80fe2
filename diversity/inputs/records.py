"""Records with captions from every kind of input, and with pictures where they are asked for."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from diversity.columns import HUMAN
from imagetext import limits
from imagetext.fields import json_value
from imagetext.readers.compressed_tables import CompressedRows
from imagetext.readers.curated_formats import without_canned
from imagetext.readers.folders import FolderRows
from imagetext.readers.row_records import KEY_COLUMNS, RowSelection, loose_texts, well_formed
from imagetext.readers.suffixes import split_suffix
from imagetext.readers.table_flags import Columns
from imagetext.readers.table_pieces import TableRows, table_records
from imagetext.readers.tables import split_rows, with_folders
from imagetext.readers.text_layout import read_layout
from imagetext.readers.text_lines import LongLine, sized_lines
from imagetext.readers.text_tables import text_records
from imagetext.sample import Record, Shard
from imagetext.sources import is_list
from imagetext.stores import open_file, read_bytes

ROWS = 10_000  # of a piece, about, where a file can be split
KEYS = (*KEY_COLUMNS, "image_id", "_id")


def captions_of(record: Record, column: str) -> tuple[str, ...]:
    """The captions of a column, which may be any field of texts; none where the record has none.

    A blank text is none, a blank one in a list is an empty caption.
    """
    if (found := record.columns.get(column)) is not None:
        return found
    return record.captions if column == HUMAN else loose_texts(record.meta.get(column))


def truncated_of(record: Record, column: str) -> tuple[bool, ...]:
    """The marks of captions that a length limit cut, where the record has them for every caption."""
    marks = record.scores.get(column, {}).get("truncated")
    return (
        tuple(map(bool, marks)) if isinstance(marks, list) and len(marks) == len(captions_of(record, column)) else ()
    )


def scene_of(record: Record) -> Mapping[str, Any] | None:
    """The description of a built-in picture."""
    scene = record.meta.get("scene")
    return scene if isinstance(scene, Mapping) and {"background", "objects"} <= scene.keys() else None


class Piece(NamedTuple):
    """Rows of one file that a process reads at a time.

    `read(columns, images)` yields every row, in order: with `columns` beside the captions and synthetic captions (None: with
    all that hold text), and with the picture where its number in the piece is in `images`. It raises ValueError or OSError,
    naming the file, where that cannot be read on.
    """

    path: str
    read: Callable[[Sequence[str] | None, Collection[int]], Iterator[Record]]
    lines: bool = False  # whether the keys are numbers of lines, which are no ids
    by_path: bool = False  # whether its pictures lie in folders of `--images`


def shard_rows(shard: Shard, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """A folder's pictures are read only where they are asked for."""
    if isinstance(shard.samples, FolderRows):
        return shard.samples.records(images)
    return (record if at in images else replace(record, image=None) for at, record in enumerate(shard))


def table_pieces(
    path: str, table: Columns = Columns(), asked: Sequence[str] = (), folders: tuple[str, ...] | None = ()
) -> list[Piece]:
    """JSON, CSV and TSV in the pieces that `imagetext` makes of them, Parquet by its row groups.

    asked: columns of captions. folders: where the pictures lie, (): beside the table; None: none is read. Raises ValueError
    where the table is not readable, or names pictures elsewhere.
    """
    parts = with_folders(
        path, split_rows(path, table, usual=(*KEYS, *asked), groups_of=ROWS), folders or (), check=folders is not None
    )
    return [Piece(path, partial(_table_rows, part), by_path=bool(folders)) for part in parts]


def _table_rows(
    part: TableRows | CompressedRows, columns: Sequence[str] | None, images: Collection[int]
) -> Iterator[Record]:
    return table_records(part, _wanted(columns, images))


def _wanted(columns: Sequence[str] | None, images: Collection[int]) -> RowSelection:
    """The columns as a table's reader takes them, which reads the originals anyway; and what is true of a built-in picture."""
    return RowSelection(
        None if columns is None else [name for name in (*columns, "scene") if name != HUMAN], images, KEYS
    )


def text_pieces(path: str, column: str) -> list[Piece]:
    starts, offset, count = [], 0, 0
    with open_file(path) as file:
        for size, _ in sized_lines(path, file):
            if count % ROWS == 0:
                starts.append(offset)
            offset, count = offset + size, count + 1
    return [
        Piece(
            path, partial(_text_rows, path, column, number * ROWS, min(ROWS, count - number * ROWS), start), lines=True
        )
        for number, start in enumerate(starts)
    ]


def _text_rows(
    path: str, column: str, first: int, count: int, offset: int, columns: Sequence[str] | None, images: Collection[int]
) -> Iterator[Record]:
    with open_file(path) as file:
        file.seek(offset)
        for number, (_, line) in zip(range(first, first + count), sized_lines(path, file)):
            if isinstance(line, LongLine):
                yield Record(f"{number:09d}", None, error=f"{path}:{number + 1}: {line}")
                continue
            text = line.decode("utf-8" if number else "utf-8-sig", "replace").rstrip("\r\n")
            yield Record(f"{number:09d}", None, columns={column: (well_formed(text),)})


def is_list_of_rows(path: str) -> bool:
    """Whether a JSON file is a list of rows as a table has them, by its first ones: not COCO results."""
    if not is_list(path):
        return False
    with open_file(path) as file:
        layout = read_layout(path, file, ".json", ())
        file.seek(layout.start)
        try:
            rows = [
                json.loads(text) for _, text in islice(text_records(path, file, layout), 100) if isinstance(text, str)
            ]
        except ValueError:  # whoever reads it says so
            return False
    return bool(rows) and all(isinstance(row, dict) and not _is_result(row) for row in rows)


def document_pieces(path: str, column: str) -> list[Piece]:
    return [Piece(path, partial(_document_rows, path, column))]


def _document_rows(path: str, column: str, columns: Sequence[str] | None, images: Collection[int]) -> Iterator[Record]:
    """Captions of a JSON document, which is read whole."""
    try:
        document = json_value(read_bytes(path, limits.DOCUMENT).decode("utf-8-sig", "replace"), limits.DOCUMENT_VALUES)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    annotated = isinstance(document, dict) and "annotations" in document
    rows = document["annotations"] if annotated else document
    if isinstance(rows, list) and any(_is_result(row) for row in rows):
        yield from _result_rows(
            without_canned(rows, path) if annotated else rows, path, column
        )  # a model's own words stay
    elif isinstance(rows, dict) and rows and all(map(_is_texts, rows.values())):
        yield from (
            Record(well_formed(key), None, columns={column: loose_texts(value)}) for key, value in rows.items()
        )
    else:
        raise ValueError(
            f'{path}: neither results of COCO [{{"image_id", "caption"}}], annotations {{"images", "annotations"}}, '
            f'{{"key": captions}} nor a list of rows; for a published set say which, as in karpathy:{path}'
        )


def _is_result(row: Any) -> bool:
    return isinstance(row, dict) and isinstance(row.get("image_id"), int | str) and isinstance(row.get("caption"), str)


def _is_texts(value: Any) -> bool:
    return all(isinstance(text, str) for text in (value if isinstance(value, list) else [value]))


def _result_rows(rows: list[Any], path: str, column: str) -> Iterator[Record]:
    """A row for each image_id with all its captions, and one for each entry that is none."""
    captions: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if _is_result(row):
            captions.setdefault(well_formed(str(row["image_id"])), []).append(row["caption"])
        else:
            error = f"{path}: entry {number + 1} is no image_id with a caption"
            yield Record(f"{split_suffix(path)[0]}-{number:09d}", None, error=error)
    yield from (Record(key, None, columns={column: loose_texts(texts)}) for key, texts in captions.items())
