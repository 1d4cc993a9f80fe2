"""Records of separated cells (CSV, TSV), whose quotation marks may hold cells together or stand for themselves."""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import Findings, LongLine, check_blank, readable

logger = logging.getLogger(__name__)


def cell_records(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int, layout: Layout, findings: Findings
) -> Iterator[tuple[int, list[str] | ValueError]]:
    """The cells of each record, by csv's strict rules.

    A record whose quotation marks break them, or that would swallow what look like rows, is its first line alone, as it stands.
    """
    taken: list[tuple[int, Any]] = []  # lines of this record, in bytes; the last may be a LongLine
    returned: list[tuple[int, Any]] = []  # lines to be read anew, the last first
    form: dict[str, Any] = {
        "delimiter": layout.delimiter,
        "skipinitialspace": layout.spaced,
        **({"strict": True} if layout.quoted else {"quoting": csv.QUOTE_NONE}),
    }

    def texts() -> Iterator[str]:
        while item := returned.pop() if returned else next(lines, None):
            taken.append(item)
            if isinstance(item[1], LongLine):
                raise item[1]
            yield readable(item[1])

    def read() -> Iterator[list[str] | ValueError]:
        while True:
            try:
                yield from csv.reader(texts(), **form)
                return
            except csv.Error as error:
                yield ValueError(f"not a line of CSV: {error}")
            except LongLine as error:
                yield error

    row = blank = 0  # the latter since `start`
    for cells in read():
        if isinstance(cells, list) and not any(cells):
            blank += 1
            check_blank(path, blank, taken[-1][0] - start)
            taken.clear()
            continue
        row, blank = row + 1, 0
        if isinstance(cells, LongLine) and len(taken) > 1:  # it stands where the end of an open cell was looked for
            returned.append(taken.pop())
            cells = ValueError("a quotation mark that opens a cell does not close it")
        if isinstance(cells, LongLine):
            pass
        elif layout.quoted and (b'"' in taken[0][1] or len(taken) > 1 or not isinstance(cells, list)):
            cells = _judged(cells, taken, returned, row, layout, findings)
        if layout.spaced and isinstance(cells, list):
            cells = [cell.strip() for cell in cells]
        start = taken[-1][0]
        yield start, cells
        taken.clear()


def _judged(
    cells: list[str] | ValueError,
    taken: list[tuple[int, bytes]],
    returned: list[tuple[int, bytes]],
    row: int,
    layout: Layout,
    findings: Findings,
) -> list[str] | ValueError:
    """The cells of a record with quotation marks, or of its first line alone, the others given back; what it shows is counted."""
    delimiter, width = layout.delimiter, len(layout.header)
    findings.odd_lines += sum(line.count(delimiter.encode()) + 1 != width for _, line in taken)
    if isinstance(cells, list) and not _swallows(taken, layout):
        findings.whole += taken[0][1].startswith(b'"') or f'{delimiter}"'.encode() in taken[0][1]
        findings.odd += len(cells) != width
        return cells
    returned += reversed(taken[1:])
    del taken[1:]
    line = taken[0][1]
    if len(line) > csv.field_size_limit():
        return (
            cells
            if isinstance(cells, ValueError)
            else ValueError("a quotation mark that opens a cell does not close it")
        )
    findings.misread += 1
    findings.first_misread = findings.first_misread or row
    literal = [
        cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell
        for cell in readable(line).rstrip("\r\n").split(delimiter)
    ]
    return literal if len(literal) == width or isinstance(cells, list) else cells


def _swallows(taken: Sequence[tuple[int, bytes]], layout: Layout) -> bool:
    """Whether most lines behind a record's first look like rows: cells as many as the header's, the first like a name of a file."""
    if len(taken) == 1 or len(layout.header) == 1:
        return False
    alike = 0
    for _, line in islice(taken, 1, None):
        cells = readable(line).rstrip("\r\n").split(layout.delimiter)
        alike += len(cells) == len(layout.header) and any(
            re.fullmatch(r'"?[^\s"]*+"?', cell.strip()) and re.search(r"[\d./]", cell) for cell in cells
        )
    return 2 * alike > len(taken) - 1


def settle_quotes(path: str, file: BinaryIO, layout: Layout, findings: Findings) -> Layout:
    """The layout as a whole pass shows it: whether quotation marks hold cells together or stand for themselves.

    They stand for themselves where that reading fits the header better and few cells are held by them whole. Says what it findings.
    """
    if not findings.misread:
        return layout
    where = f"row {findings.first_misread:,} begins a cell with a quotation mark that does not end it"
    if (
        findings.odd_lines < findings.misread + findings.odd
        and findings.whole <= findings.misread
        and not _header_is_quoted(file, layout)
    ):
        logger.warning("%s: %s: all quotation marks are read as they stand", path, where)
        return layout._replace(quoted=False)
    logger.warning(
        "%s: %s; %s",
        path,
        where,
        "it is read as it stands"
        if findings.misread == 1
        else f"such rows, {findings.misread:,}, are read as they stand",
    )
    return layout


def _header_is_quoted(file: BinaryIO, layout: Layout) -> bool:
    file.seek(0)
    return b'"' in file.read(layout.start)
