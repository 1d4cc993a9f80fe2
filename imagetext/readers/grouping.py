"""Find rows of a table that belong to one picture, sort them on disk so that memory does not grow, and join them."""

import logging
import os
import sqlite3
import tempfile
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np

from imagetext import limits
from imagetext.keys import text_of
from imagetext.readers.row_records import Row, is_null, size_of
from imagetext.readers.table_columns import BYTES, TableReading, flat

logger = logging.getLogger(__name__)

HELD = 1 << 17  # hashes that are held in memory before they are written to a file


class PictureCounter:
    """Takes the names of pictures row by row, and counts pictures; says whether rows of a picture are not adjacent.

    Hashes of the names are stored on disk.
    """

    def __init__(self) -> None:
        self.count, self.rows, self.last = 0, 0, None  # pictures and rows so far, and the name of the last row
        self.hashes = array("Q")
        self.file: BinaryIO = tempfile.TemporaryFile()

    def is_new(self, name: str | None) -> bool:
        """Whether a row with this name begins another picture than the row before.

        A row without a name always does.
        """
        self.rows += 1
        if name is not None and name == self.last:
            return False
        self.count, self.last = self.count + 1, name
        if name is not None:
            self.hashes.append(hash(name) & 0xFFFFFFFFFFFFFFFF)
            if len(self.hashes) >= HELD:
                self._spill()
        return True

    def _spill(self) -> None:
        self.hashes.tofile(self.file)
        del self.hashes[:]

    def are_scattered(self) -> bool:
        """Whether a name comes again after another name. Hashes are compared, so it is very rarely True by mistake."""
        self._spill()
        self.file.flush()
        if not self.file.tell():
            return False
        hashes = np.memmap(self.file, np.uint64, "r+")
        hashes.sort()  # in the file
        for start in range(0, len(hashes), HELD):
            part = hashes[start : start + HELD + 1]
            if (part[1:] == part[:-1]).any():
                return True
        return False


def _hash(name: str) -> bytes:
    """A hash that is long enough to be different for all names; a name may be a whole picture in base64."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def side_by_side(rows: Iterable[tuple[str | None, int, int | None]]) -> Iterator[tuple[int, int | None, bool]]:
    """Sort rows so that those of a picture are adjacent, in the order of the first rows of pictures.

    rows: (name of the picture, number, place). Yields (number, place, whether the row is the first of its picture).
    """
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(os.path.join(folder, "rows.sqlite"), isolation_level=None)
        database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA temp_store = FILE; BEGIN;"
            "CREATE TABLE rows (name, number INTEGER, place INTEGER)"
        )
        database.executemany(
            "INSERT INTO rows VALUES (?, ?, ?)",
            ((number if name is None else _hash(name), number, place) for name, number, place in rows),
        )
        before = None
        query = "SELECT number, place, min(number) OVER (PARTITION BY name) AS first FROM rows ORDER BY first, number"
        for number, place, first in database.execute(query):
            yield number, place, first != before
            before = first
        database.close()


def grouping_name(row: Row | ValueError, reading: TableReading) -> str | None:
    """A name that all rows of one picture share; None for a row that is not a single caption of a picture."""
    if isinstance(row, ValueError):
        return None
    picture = _picture_hash(row.get("image")) if reading.group_by == BYTES else row.get(reading.group_by)
    if picture.__class__ not in (str, int, float) or is_null(picture) or row.get(reading.text).__class__ is not str:
        return None
    key = row.get("key", row.get("uid"))  # rows with different keys are different samples
    return text_of(picture) if key is None else f"{key}\0{text_of(picture)}"


def _picture_hash(picture: Any) -> str | None:
    """A hash of a picture's bytes (or of the bytes in a struct of `datasets`); None if there are none."""
    data = picture.get("bytes") if isinstance(picture, dict) else picture
    return blake2b(data, digest_size=16).hexdigest() if data and isinstance(data, bytes) else None


def grouped(
    rows: Iterable[tuple[int, Row | ValueError]],
    reading: TableReading,
    selected: Collection[str] = (),
    *,
    path: str,
    firsts: Mapping[int, int] | None = None,
) -> Iterator[tuple[int, Row | ValueError]]:
    """Join adjacent rows of one picture into the first of them, which gets the captions of all.

    A warning names each further row that cannot be read.

    selected: further columns whose texts are joined. path: the table's, for warnings.
    firsts: by the number of a row, the number of the first row of its picture, if the rows do not show it themselves.
    """

    def name_of(row: tuple[int, Row | ValueError]) -> str | int | None:
        return grouping_name(row[1], reading) if firsts is None else firsts[row[0]]

    for name, rows_of_picture in groupby(rows, name_of):
        if name is None:
            yield from rows_of_picture
            continue
        number, first = next(rows_of_picture)
        if isinstance(first, ValueError):
            yield number, first
            continue
        parts, size = [first], 0
        for further, row in rows_of_picture:  # noqa: B031  (the first was taken)
            if isinstance(row, ValueError):
                logger.warning("%s: row %s is left out of its picture's captions: %s", path, f"{further + 1:,}", row)
                continue
            texts = {column: row.get(column) for column in (*selected, reading.text)}  # without its picture
            size += size_of(texts)
            if size <= limits.BATCH:
                parts.append(texts)
        if size > limits.BATCH:
            first = ValueError(f"rows of one picture with captions of {size:,} bytes, more than {limits.BATCH:,}")
        elif len(parts) > 1:
            _join_texts(parts, selected, reading.text)
        yield number, first


def _join_texts(parts: Sequence[Row], selected: Collection[str], text: str) -> None:
    """Put the texts of all rows of a picture into the first of them.

    text: the column of captions. selected: further columns; a value that is the same in all rows stays a single one.
    """
    for column in dict.fromkeys((*selected, text)):  # each once, although the captions may be selected by their name
        cells = [part.get(column) for part in parts]
        if column == text or any(cell != cells[0] for cell in cells):
            parts[0][column] = _nonempty_texts(cells)


def _nonempty_texts(cells: Iterable[Any]) -> list[str]:
    return [text for text in flat(cells) if text and isinstance(text, str)]
