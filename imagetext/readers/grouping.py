"""Which rows of a table are one picture's: told in flat memory, put side by side by sorting on disk."""

import os
import sqlite3
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import BinaryIO

import numpy as np

HELD = 1 << 17  # hashes that are held before they go to a file


class Repeats:
    """Names row by row: how many differ from the one before, and whether one comes again later. Hashes of names lie on disk."""

    def __init__(self) -> None:
        self.count, self.rows, self.last = 0, 0, None
        self.held = array("Q")
        self.file: BinaryIO = tempfile.TemporaryFile()

    def is_new(self, name: str | None) -> bool:
        """Whether a row begins another picture; one without a name always does."""
        self.rows += 1
        if name is not None and name == self.last:
            return False
        self.count, self.last = self.count + 1, name
        if name is not None:
            self.held.append(hash(name) & 0xFFFFFFFFFFFFFFFF)
            if len(self.held) >= HELD:
                self._spill()
        return True

    def _spill(self) -> None:
        self.held.tofile(self.file)
        del self.held[:]

    def come_again(self) -> bool:
        """Whether a name comes again after another one: by its hash, so in rare cases it is another name that does."""
        self._spill()
        self.file.flush()
        if not self.file.tell():
            return False
        hashes = np.memmap(self.file, np.uint64, "r+")
        hashes.sort()  # in the file
        return any(
            (part[1:] == part[:-1]).any()
            for part in (hashes[start : start + HELD + 1] for start in range(0, len(hashes), HELD))
        )


def _hash(name: str) -> bytes:
    """A hash long enough that no two names share one; a name may be a whole picture in base64."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def side_by_side(rows: Iterable[tuple[str | None, int, int | None]]) -> Iterator[tuple[int, int | None, bool]]:
    """Rows (name, number, place) -> (number, place, whether it begins a picture): in the order of each picture's first row."""
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
        for number, place, first in database.execute("""
                SELECT number, place, min(number) OVER (PARTITION BY name) AS first FROM rows ORDER BY first, number"""):
            yield number, place, first != before
            before = first
        database.close()
