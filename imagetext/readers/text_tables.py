"""Tables that are text: the records of JSON lines, a JSON array or separated cells, and where each ends."""

import logging
from collections.abc import Iterator
from typing import BinaryIO

from imagetext.readers.cells import cell_records
from imagetext.readers.json_values import array_records
from imagetext.readers.text_layout import Layout
from imagetext.readers.text_lines import NEARBY, WINDOW, Findings, lines_in_utf8, lines_with_text

logger = logging.getLogger(__name__)

TextRecord = str | list[str] | ValueError  # JSON text, or cells, or what is wrong with the record as a whole


def text_records(
    path: str, file: BinaryIO, layout: Layout, findings: Findings | None = None, *, nearby: bool = False
) -> Iterator[tuple[int, TextRecord]]:
    """Yield the offset of the end of each record that is not blank, and the record, from the file's current position.

    findings: counts what is wrong with lines.
    nearby: whether only a few records are read, so that small blocks are enough.

    Raises ValueError, which names the line, if an array cannot be read any further.
    """
    if layout.array:
        return array_records(path, file, layout, window_size=NEARBY if nearby else WINDOW)
    lines = lines_in_utf8(path, file, layout.encoding, findings=findings)
    if layout.delimiter:
        return cell_records(path, lines, file.tell(), layout=layout, findings=findings or Findings())
    return lines_with_text(path, lines, file.tell())


def warn_of_undecodable_lines(path: str, file: BinaryIO, findings: Findings) -> None:
    if not findings.undecodable:
        return
    file.seek(0)
    line = 0
    while block := file.read(min(WINDOW, findings.first_undecodable - file.tell())):
        line += block.count(b"\n")
    others = f", nor are {findings.undecodable - 1:,} more" if findings.undecodable > 1 else ""
    logger.warning(
        "%s: line %s is not UTF-8%s; bytes that cannot be read become \ufffd: save the file as UTF-8",
        path,
        f"{line:,}",
        others,
    )
