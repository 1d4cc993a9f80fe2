"""Records of separated cells (CSV, TSV), whose quotation marks may enclose cells or be ordinary characters."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import Findings, LongLine, check_blank, readable

logger = logging.getLogger(__name__)

NOT_CLOSED = "a quotation mark that opens a cell does not close it"


def cell_records(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int, layout: Layout, findings: Findings
) -> Iterator[tuple[int, list[str] | ValueError]]:
    """Yield the end and the cells of each record, by the strict rules of Python's csv.

    If the quotation marks of a record break these rules, or would join several lines that look like rows, the record
    is only its first line, with the marks as ordinary characters.

    lines: each with the offset of its end. start: the offset at which they begin.
    """
    record_lines: list[tuple[int, Any]] = []  # of the current record, in bytes; the last may be a LongLine
    returned: list[tuple[int, Any]] = []  # lines to be read again, the last first
    dialect: dict[str, Any] = {
        "delimiter": layout.delimiter,
        "skipinitialspace": layout.spaced,
        **({"strict": True} if layout.quoted else {"quoting": csv.QUOTE_NONE}),
    }

    def texts() -> Iterator[str]:
        while item := returned.pop() if returned else next(lines, None):
            record_lines.append(item)
            if isinstance(item[1], LongLine):
                raise item[1]
            yield readable(item[1])

    def read() -> Iterator[list[str] | ValueError]:
        while True:
            try:
                yield from csv.reader(texts(), **dialect)
                return
            except csv.Error as error:
                yield ValueError(f"not a line of CSV: {error}")
            except LongLine as error:
                yield error

    row = blank = 0  # rows so far, and blank lines since `start`
    for cells in read():
        if isinstance(cells, list) and not any(cells):
            blank += 1
            check_blank(path, blank, record_lines[-1][0] - start)
            record_lines.clear()
            continue
        row, blank = row + 1, 0
        if isinstance(cells, LongLine) and len(record_lines) > 1:  # the csv reader was looking for the end of a cell
            returned.append(record_lines.pop())
            cells = ValueError(NOT_CLOSED)
        may_be_quoted = layout.quoted and not isinstance(cells, LongLine)
        if may_be_quoted and (b'"' in record_lines[0][1] or len(record_lines) > 1 or not isinstance(cells, list)):
            cells = _check_quotes(cells, record_lines, returned, row=row, layout=layout, findings=findings)
        if layout.spaced and isinstance(cells, list):
            cells = [cell.strip() for cell in cells]
        start = record_lines[-1][0]
        yield start, cells
        record_lines.clear()


def _check_quotes(
    cells: list[str] | ValueError,
    record_lines: list[tuple[int, bytes]],
    returned: list[tuple[int, bytes]],
    *,
    row: int,
    layout: Layout,
    findings: Findings,
) -> list[str] | ValueError:
    """The cells of a record with quotation marks, or those of its first line if the marks are not those of csv.

    In the second case the other lines are added to `returned`. `findings` counts what the record shows about the
    table.
    """
    delimiter, width = layout.delimiter, len(layout.header)
    findings.odd_lines += sum(line.count(delimiter.encode()) + 1 != width for _, line in record_lines)
    first_line = record_lines[0][1]
    if isinstance(cells, list) and not _joins_rows(record_lines, layout):
        findings.quoted += first_line.startswith(b'"') or f'{delimiter}"'.encode() in first_line
        findings.odd += len(cells) != width
        return cells
    returned += reversed(record_lines[1:])
    del record_lines[1:]
    if len(first_line) > csv.field_size_limit():
        return cells if isinstance(cells, ValueError) else ValueError(NOT_CLOSED)
    findings.misread += 1
    findings.first_misread = findings.first_misread or row
    literal = [
        cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
        for cell in readable(first_line).rstrip("\r\n").split(delimiter)
    ]
    return literal if len(literal) == width or isinstance(cells, list) else cells


def _joins_rows(record_lines: Sequence[tuple[int, bytes]], layout: Layout) -> bool:
    """Whether most lines after the first of a record look like rows of their own.

    A line looks like a row if it has as many cells as the header, and one of them looks like the name of a file.
    """
    if len(record_lines) == 1 or len(layout.header) == 1:
        return False
    rows = 0
    for _, line in islice(record_lines, 1, None):
        cells = readable(line).rstrip("\r\n").split(layout.delimiter)
        rows += len(cells) == len(layout.header) and any(
            re.fullmatch(r'"?[^\s"]*+"?', cell.strip()) and re.search(r"[\d./]", cell) for cell in cells
        )
    return 2 * rows > len(record_lines) - 1


def settle_quotes(path: str, file: BinaryIO, layout: Layout, findings: Findings) -> Layout:
    """Return the layout, with what a pass over the whole table shows: whether quotation marks enclose cells.

    They are ordinary characters if that reading fits the header better and few cells are properly enclosed. A warning
    says how rows with unmatched marks are read.

    findings: the counts of that pass.
    """
    if not findings.misread:
        return layout
    where = f"row {findings.first_misread:,} begins a cell with a quotation mark that does not end it"
    if (
        findings.odd_lines < findings.misread + findings.odd
        and findings.quoted <= findings.misread
        and not _header_is_quoted(file, layout)
    ):
        logger.warning("%s: %s: all quotation marks are read as ordinary characters", path, where)
        return layout._replace(quoted=False)
    how = "its marks are read as ordinary characters"
    if findings.misread > 1:
        how = f"the marks in {findings.misread:,} such rows are read as ordinary characters"
    logger.warning("%s: %s; %s", path, where, how)
    return layout


def _header_is_quoted(file: BinaryIO, layout: Layout) -> bool:
    file.seek(0)
    return b'"' in file.read(layout.start)
