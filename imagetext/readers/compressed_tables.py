"""Tables in gzip or zstd: all rows of one are one piece."""

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from imagetext import limits
from imagetext.picture_files import PictureFolders
from imagetext.readers.cells import settle_quotes
from imagetext.readers.grouping import Repeats
from imagetext.readers.row_records import Row, Wanted, with_unique_keys
from imagetext.readers.suffixes import COMPRESSIONS, table_kind
from imagetext.readers.table_columns import Reading
from imagetext.readers.table_pieces import as_read, picture_name_in, row_of, table_records, text_pieces
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import WINDOW, Findings
from imagetext.readers.text_tables import records
from imagetext.readers.unpacked import Unpacked
from imagetext.sample import Record
from imagetext.stores import StoreError, open_file


@dataclass(frozen=True)
class CompressedRows:
    """All rows of a compressed table, which cannot be entered in its midst and tells no length."""

    path: str
    layout: Layout
    reading: Reading | None = None
    folders: PictureFolders | None = None

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def numbered(self, wanted: Wanted | None = None) -> Iterator[tuple[int, Row | ValueError]]:
        """As `TableRows` does; where rows of a picture do not stand together, they are unpacked on disk."""
        if not self._is_scattered():
            rows = (row_of(record, self.layout) for record in unpacked_records(self.path, self.layout))
            yield from as_read(enumerate(rows), self.reading, wanted)
            return
        with tempfile.TemporaryFile() as file:
            with unpacked(self.path) as packed:
                shutil.copyfileobj(packed, file)
            for piece in text_pieces(self.path, file, self.layout, self.reading):
                yield from piece.numbered(wanted, file)

    def _is_scattered(self) -> bool:
        """Whether a picture's row comes again behind others; ValueError where there is then more than may be unpacked."""
        if not (self.reading and self.reading.same):
            return False
        repeats, size = Repeats(), 0
        with unpacked(self.path) as file:
            file.seek(self.layout.start)
            for size, record in records(self.path, file, self.layout):  # noqa: B007  (the last size is read below)
                repeats.is_new(picture_name_in(record, self.layout, self.reading))
        if (scattered := repeats.come_again()) and size > limits.UNPACKED:
            raise ValueError(
                f"{self.path}: rows of one picture stand apart, and all are {size:,} bytes, more than the "
                f"{limits.UNPACKED:,} that are unpacked to sort them; give the table unpacked, or --no-group makes each row one"
            )
        return scattered


@contextmanager
def unpacked(path: str) -> Iterator[BinaryIO]:
    """The contents of a compressed table, to be read forwards."""
    compression = COMPRESSIONS[table_kind(path)]
    with open_file(path) as file:
        if not file.peek(1):
            raise ValueError(f"{path}: empty, which no {compression} file is")
        try:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), compression) as stream:
                yield io.BufferedReader(Unpacked(stream), WINDOW)
        except StoreError:
            raise
        except (pa.ArrowException, OSError, tarfile.ReadError) as error:
            raise ValueError(f"{path}: cut or damaged: {error}") from error


def unpacked_records(path: str, layout: Layout) -> Iterator[str | list[str] | ValueError]:
    with unpacked(path) as file:
        file.seek(layout.start)
        yield from (record for _, record in records(path, file, layout))


def settled_layout(path: str, layout: Layout) -> Layout:
    """The layout of a compressed table as all of it shows: only quotation marks need a look."""
    if not layout.delimiter:
        return layout
    findings = Findings()
    with unpacked(path) as file:
        file.seek(layout.start)
        for _ in records(path, file, layout, findings):
            pass
    with unpacked(path) as file:
        return settle_quotes(path, file, layout, findings)
