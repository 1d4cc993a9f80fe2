"""Rows that the first pass has read wait on disk for the second pass, so that most rows are read once."""

import marshal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import IO, Any

from diversity.inputs.records import Piece
from imagetext.sample import Record

LIMIT = 1 << 28  # bytes of all rows that a process keeps; pieces that do not fit are read again
ROWS_AT_ONCE, CHARACTERS_AT_ONCE = 1000, 1 << 20  # rows that are written together have at most so many

# The key of a row, its captions by column, which of them were cut, and the description of a built-in picture.
KeptRow = tuple[str, dict[str, tuple[str, ...]], dict[str, tuple[bool, ...]], Mapping[str, Any] | None]


class Space:
    """The folder in which a process keeps rows, and the bytes that it may still write there."""

    def __init__(self, folder: str | None):
        """folder: None where nothing shall be kept."""
        self.folder, self.left = folder, LIMIT if folder else 0


class KeptPiece:
    """A file with the rows of a piece. Where they do not fit on the disk, they are not kept."""

    def __init__(self, space: Space):
        self._space, self._rows, self._characters = space, [], 0
        self._file: IO[bytes] | None = None
        if space.left > 0:
            with suppress(OSError):
                self._file = NamedTemporaryFile(dir=space.folder, delete=False)

    def add(self, row: KeptRow) -> None:
        """Keep a row, if there is space."""
        if self._file is None:
            return
        self._rows.append(row)
        self._characters += sum(sum(map(len, captions)) for captions in row[1].values())
        if len(self._rows) == ROWS_AT_ONCE or self._characters > CHARACTERS_AT_ONCE:
            self._write(self._file)

    def _write(self, file: IO[bytes]) -> None:
        """Write the rows; give the piece up where they do not fit, or hold a value that cannot be written."""
        try:
            data = marshal.dumps(self._rows)  # three times as fast as JSON, and it can run no code either
            if len(data) > self._space.left:
                raise OSError("no space left for kept rows")
            file.write(len(data).to_bytes(8, "little") + data)
            file.flush()  # so that a full disk is noticed here
        except (OSError, ValueError):
            with suppress(OSError):
                file.close()
            self._file = None
        else:
            self._space.left -= len(data)
        self._rows, self._characters = [], 0

    def finish(self) -> str:
        """Write the last rows, and return the path of the file; "" where the rows are not kept."""
        if self._file is not None and self._rows:
            self._write(self._file)
        if self._file is None:
            return ""
        self._file.close()
        return self._file.name


def rows_again(piece: Piece, kept: str, columns: Sequence[str], pictures: Sequence[int]) -> Iterator[Record]:
    """Yield the rows of a piece for the second time, with these `columns`, from the file `kept` if there is one.

    pictures: the rows, in order, whose pictures are read, always from the piece. Raises ValueError where the piece
    has fewer rows than before.
    """
    if not kept:
        yield from piece.read(columns, frozenset(pictures))
        return
    read = piece.read((), frozenset(pictures))
    for number, row in enumerate(_kept_rows(kept)):
        if not pictures or number > pictures[-1]:
            yield row
        elif pictured := next(read, None):
            yield replace(row, image=pictured.image) if pictured.image else row
        else:
            raise ValueError(f"{piece.path}: changed while it was read")


def _kept_rows(path: str) -> Iterator[Record]:
    """Yield the rows of a piece that was kept, without their pictures."""
    with open(path, "rb") as file:
        while size := file.read(8):
            for key, columns, truncated, scene in marshal.loads(file.read(int.from_bytes(size, "little"))):
                yield Record(
                    key,
                    None,
                    columns=columns,
                    scores={name: {"truncated": list(marks)} for name, marks in truncated.items()},
                    meta={"scene": scene} if scene is not None else {},
                )
