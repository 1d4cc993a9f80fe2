"""Lines of text files, within bounds, and what is strange about them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, AnyStr, BinaryIO

from imagetext import limits

WINDOW = 1 << 20  # bytes of a file that are read at a time
NEARBY = 1 << 16  # bytes that are read at a time where rows stand apart


@dataclass
class Findings:
    """Counts of strange lines and quotation marks, made in one pass over a table."""

    strange: int = 0  # lines that are no UTF-8
    first_strange: int = 0  # the offset behind the first
    misread: int = 0  # records with a quotation mark that opens a cell and does not close it
    first_misread: int = 0  # the row of the first, from 1
    whole: int = 0  # records with cells in quotation marks
    odd: int = 0  # of records with quotation marks, those that do not fit the header
    odd_lines: int = 0  # and of their lines, taken one by one with the marks as they stand

    def look_at(self, line: bytes, end: int) -> None:
        """Counts a line that is no UTF-8."""
        try:
            line.decode()
        except UnicodeDecodeError:
            self.strange, self.first_strange = self.strange + 1, self.first_strange or end


def readable(line: bytes) -> str:
    """The line as text, with a mark for what is no UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace")


class LongLine(ValueError):
    """The problem of a line that is larger than limits.LINE; it stands in the place of the line."""


def sized_lines(
    path: str, file: IO[AnyStr], size: Callable[[AnyStr], int] = len
) -> Iterator[tuple[int, AnyStr | LongLine]]:
    """The size of each line of a file, in bytes, and the line, or that it is too long; ValueError where such a one has no end."""
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
    """The lines of a file; ValueError where one is larger than limits.LINE."""
    for _, line in sized_lines(path, file):
        if isinstance(line, LongLine):
            raise ValueError(f"{path}: {line}")
        yield line


def lines_in_utf8(
    path: str, file: BinaryIO, encoding: str, findings: Findings | None = None
) -> Iterator[tuple[int, bytes | LongLine]]:
    """Offset behind each line, and the line in UTF-8, from where the file stands."""
    position = file.tell()
    if encoding == "utf-8":
        for size, line in sized_lines(path, file):
            position += size
            if findings and isinstance(line, bytes) and not line.isascii():
                findings.look_at(line, position)
            yield position, line
        return
    text = io.TextIOWrapper(file, encoding, newline="\n")
    try:
        for size, line in sized_lines(path, text, lambda line: len(line.encode(encoding))):
            position += size
            yield position, line if isinstance(line, LongLine) else line.encode("utf-8", "replace")
    except UnicodeError as error:
        raise ValueError(f"{path}: no whole {encoding[:6].upper()}: {error}") from error
    finally:
        if not file.closed:
            text.detach()


def lines_with_text(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int
) -> Iterator[tuple[int, str | LongLine]]:
    """The lines that are not blank."""
    blank = 0  # lines, behind `start`
    for end, line in lines:
        if isinstance(line, bytes) and line.isspace():
            blank += 1
            check_blank(path, blank, end - start)
            continue
        start, blank = end, 0
        yield end, readable(line) if isinstance(line, bytes) else line


def check_blank(path: str, lines: int, size: int) -> None:
    """Raises ValueError where more blank lines stand between two rows than are passed over."""
    if lines > limits.BLANK_LINES or size > limits.BLANK:
        most = f"{limits.BLANK_LINES:,} lines or {limits.BLANK:,} bytes"
        raise ValueError(f"{path}: more than {most} between two rows are blank")
