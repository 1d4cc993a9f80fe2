"""Lines of text files, within limits, and counts of what is wrong with them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, AnyStr, BinaryIO

from imagetext import limits

WINDOW = 1 << 20  # bytes of a file that are read at a time
NEARBY = 1 << 16  # bytes that are read at a time if single rows are read


@dataclass
class Findings:
    """Counts of undecodable lines and of quotation marks, made in one pass over a table."""

    undecodable: int = 0  # lines that are not UTF-8
    first_undecodable: int = 0  # the offset of the end of the first of them
    misread: int = 0  # records with a quotation mark that opens a cell and does not close it
    first_misread: int = 0  # the row of the first of them, counted from 1
    quoted: int = 0  # records with cells that are properly enclosed in quotation marks
    odd: int = 0  # records with quotation marks whose number of cells differs from the header
    odd_lines: int = 0  # lines of records with quotation marks that differ from the header if marks are ordinary

    def count_undecodable(self, line: bytes, end: int) -> None:
        """Count a line if it is not UTF-8. end: the offset of its end."""
        try:
            line.decode()
        except UnicodeDecodeError:
            self.undecodable, self.first_undecodable = self.undecodable + 1, self.first_undecodable or end


def readable(line: bytes) -> str:
    """The line as text, with U+FFFD for bytes that are not UTF-8."""
    return line.decode("utf-8", "replace")


class LongLine(ValueError):
    """The error of a line that is larger than limits.LINE; readers yield it instead of the line."""


def sized_lines(
    path: str, file: IO[AnyStr], size: Callable[[AnyStr], int] = len
) -> Iterator[tuple[int, AnyStr | LongLine]]:
    """Yield the size of each line of a file, in bytes, and the line or LongLine.

    Raises ValueError if the end of such a line is not found within limits.SKIPPED.
    """
    while line := file.readline(limits.LINE + 1):
        if len(line) <= limits.LINE:
            yield size(line), line
            continue
        problem = LongLine(f"a line of more than {limits.LINE:,} bytes, which begins with {line[:40]!r}")
        skipped = size(line)
        while line[-1:] not in ("\n", b"\n"):
            line = file.readline(WINDOW)
            skipped += size(line)
            if not line or skipped > limits.SKIPPED:
                raise ValueError(f"{path}: {problem}")
        yield skipped, problem


def lines_of(path: str, file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Yield the lines of a file. Raises ValueError if one is larger than limits.LINE."""
    for _, line in sized_lines(path, file):
        if isinstance(line, LongLine):
            raise ValueError(f"{path}: {line}")
        yield line


def lines_in_utf8(
    path: str, file: BinaryIO, encoding: str, findings: Findings | None = None
) -> Iterator[tuple[int, bytes | LongLine]]:
    """Yield the offset of the end of each line, and the line in UTF-8, from the current position of the file."""
    position = file.tell()
    if encoding == "utf-8":
        for size, line in sized_lines(path, file):
            position += size
            if findings and isinstance(line, bytes) and not line.isascii():
                findings.count_undecodable(line, position)
            yield position, line
        return
    text = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        for size, line in sized_lines(path, text, lambda line: len(line.encode(encoding))):
            position += size
            yield position, line if isinstance(line, LongLine) else line.encode("utf-8", "replace")
    except UnicodeError as error:
        raise ValueError(f"{path}: not valid {encoding[:6].upper()}: {error}") from error
    finally:
        if not file.closed:
            text.detach()


def lines_with_text(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int
) -> Iterator[tuple[int, str | LongLine]]:
    """Yield the lines that are not blank."""
    blank = 0  # blank lines since `start`
    for end, line in lines:
        if isinstance(line, bytes) and line.isspace():
            blank += 1
            check_blank(path, blank, end - start)
            continue
        start, blank = end, 0
        yield end, readable(line) if isinstance(line, bytes) else line


def check_blank(path: str, lines: int, size: int) -> None:
    """Raise ValueError if there are more blank lines, or bytes in them, between two rows than the limits allow."""
    if lines > limits.BLANK_LINES or size > limits.BLANK:
        most = f"{limits.BLANK_LINES:,} lines or {limits.BLANK:,} bytes"
        raise ValueError(f"{path}: more than {most} between two rows are blank")
