"""Tables that are compressed by gzip or zstd. All rows of such a table are one piece."""

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
from imagetext.readers.grouping import PictureCounter
from imagetext.readers.row_records import Row, RowSelection, with_unique_keys
from imagetext.readers.suffixes import COMPRESSIONS, table_kind
from imagetext.readers.table_columns import TableReading
from imagetext.readers.table_pieces import picture_name_in, row_of, table_records, text_pieces, usual_rows
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import WINDOW, Findings
from imagetext.readers.text_tables import text_records
from imagetext.readers.unpacked import Unpacked
from imagetext.sample import Record
from imagetext.stores import StoreError, open_file


@dataclass(frozen=True)
class CompressedRows:
    """All rows of a compressed table, which can only be read from its beginning, and whose length is not known."""

    path: str
    layout: Layout
    reading: TableReading | None = None
    folders: PictureFolders | None = None

    def __iter__(self) -> Iterator[Record]:
        return with_unique_keys(table_records(self), self.path)

    def numbered(self, selection: RowSelection | None = None) -> Iterator[tuple[int, Row | ValueError]]:
        """Yield the numbers and rows, as `TableRows.numbered` does.

        If the rows of a picture are not adjacent, the table is first unpacked to disk.
        """
        if not self._is_scattered():
            rows = (row_of(record, self.layout) for record in unpacked_records(self.path, self.layout))
            yield from usual_rows(enumerate(rows), self.reading, selection, path=self.path)
            return
        with tempfile.TemporaryFile() as file:
            with unpacked(self.path) as packed:
                shutil.copyfileobj(packed, file)
            for piece in text_pieces(self.path, file, self.layout, reading=self.reading):
                yield from piece.numbered(selection, file)

    def _is_scattered(self) -> bool:
        """Whether some rows of a picture are not adjacent.

        Raises ValueError if the table is then too large to unpack.
        """
        if not (self.reading and self.reading.group_by):
            return False
        repeats, size = PictureCounter(), 0
        with unpacked(self.path) as file:
            file.seek(self.layout.start)
            for end, record in text_records(self.path, file, self.layout):
                size = end
                repeats.is_new(picture_name_in(record, self.layout, self.reading))
        is_scattered = repeats.are_scattered()
        if is_scattered and size > limits.UNPACKED:
            raise ValueError(
                f"{self.path}: rows of one picture are not adjacent, and the table has {size:,} bytes, more than the "
                f"{limits.UNPACKED:,} that are unpacked to sort them; give the table unpacked, or use --no-group, "
                "which makes each row a record"
            )
        return is_scattered


@contextmanager
def unpacked(path: str) -> Iterator[BinaryIO]:
    """Open the content of a compressed table, which can only be read forwards."""
    compression = COMPRESSIONS[table_kind(path)]
    with open_file(path) as file:
        if not file.peek(1):
            raise ValueError(f"{path}: is empty, so it is not a {compression} file")
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
        yield from (record for _, record in text_records(path, file, layout))


def settled_layout(path: str, layout: Layout) -> Layout:
    """The layout of a compressed table after a pass over all of it, which only quotation marks need."""
    if not layout.delimiter:
        return layout
    findings = Findings()
    with unpacked(path) as file:
        file.seek(layout.start)
        for _ in text_records(path, file, layout, findings=findings):
            pass
    with unpacked(path) as file:
        return settle_quotes(path, file, layout, findings=findings)
