"""Find rows of a table that belong to one picture, in memory that does not grow, and sort them on disk."""

import os
import sqlite3
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import BinaryIO

import numpy as np

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
