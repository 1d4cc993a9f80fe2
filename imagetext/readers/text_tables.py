"""Tables that are text: the records of JSON lines, a JSON array or separated cells, with the place of each."""

import logging
from collections.abc import Iterator
from typing import BinaryIO

from imagetext.readers.cells import cell_records
from imagetext.readers.json_values import array_records
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import NEARBY, WINDOW, Findings, lines_in_utf8, lines_with_text

logger = logging.getLogger(__name__)

Record = str | list[str] | ValueError  # JSON text, or cells, or what is wrong with the record as a whole


def records(
    path: str, file: BinaryIO, layout: Layout, findings: Findings | None = None, *, few: bool = False
) -> Iterator[tuple[int, Record]]:
    """Offset in bytes behind, and what is in, each record that is not blank, from where the file stands.

    findings: counts what is strange. few: whether only one or a few are wanted.
    Raises ValueError, with the line, where an array cannot be read on.
    """
    if layout.array:
        return array_records(path, file, layout, NEARBY if few else WINDOW)
    lines = lines_in_utf8(path, file, layout.encoding, findings)
    if layout.delimiter:
        return cell_records(path, lines, file.tell(), layout, findings or Findings())
    return lines_with_text(path, lines, file.tell())


def tell_of_strange_lines(path: str, file: BinaryIO, findings: Findings) -> None:
    """A warning of lines that are no UTF-8."""
    if findings.strange:
        file.seek(0)
        line = sum(
            block.count(b"\n")
            for block in iter(lambda: file.read(min(WINDOW, findings.first_strange - file.tell())), b"")
        )
        logger.warning(
            "%s: line %s is no UTF-8%s; what cannot be read becomes \ufffd: save the file as UTF-8",
            path,
            f"{line:,}",
            f", nor are {findings.strange - 1:,} more" if findings.strange > 1 else "",
        )
