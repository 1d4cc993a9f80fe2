"""Tables that are text: how one is written, and its records with the place of each: JSON lines, a JSON array, separated cells."""

import codecs
import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, AnyStr, BinaryIO, NamedTuple

from imagetext import limits

logger = logging.getLogger(__name__)

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # at the start of a file
DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}
WINDOW = 1 << 20  # bytes of an array that are read at a time
NEARBY = 1 << 16  # bytes that are read at a time where rows stand apart

Record = str | list[str] | ValueError  # JSON text, or cells, or what is wrong with the record as a whole


class Layout(NamedTuple):
    """How a text table is written."""

    start: int  # bytes before its first record
    encoding: str = "utf-8"  # UTF-16 and UTF-32 where the file begins with their marks
    array: bool = False  # JSON values one after another or in an array, whatever the lines
    delimiter: str = ""  # "": JSON
    spaced: bool = False  # blanks around cells belong to the delimiter
    quoted: bool = True  # a cell that begins with a quotation mark ends with one; else marks stand for themselves
    header: tuple[str, ...] = ()  # of cells


@dataclass
class Found:
    """What a pass over a table found."""

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


# ---- how a table is written ------------------------------------------------------------------------------------------


def read_layout(path: str, file: BinaryIO, kind: str, usual: Iterable[str]) -> Layout:
    """The layout of a JSON (`.json`, `.jsonl`) or separated (`.csv`, `.tsv`) table by its first bytes.

    usual: names of columns that tell the delimiter. Raises ValueError where the file is no such text.
    """
    head = file.read(4)
    mark, encoding = encoding_of(head)
    file.seek(len(mark))
    if kind in (".json", ".jsonl"):
        start = file.read(4096).decode(encoding, "replace").lstrip()
        # `{` alone on its line begins an object that is printed over several
        array = bool(re.match(r"\[\s*(\{|\]|$)|\{\s*\n", start)) or kind == ".json"
        if array and encoding != "utf-8":
            raise ValueError(f"{path}: is {encoding[:6].upper()}; save it as UTF-8")
        return Layout(len(mark), encoding, array)
    return _separated(path, file, Layout(len(mark), encoding), "\t" if kind == ".tsv" else ",", usual)


def encoding_of(head: bytes) -> tuple[bytes, str]:
    """The mark that a file begins with, and the encoding that it stands for; UTF-8 without one."""
    return next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", "utf-8"))


def _separated(path: str, file: BinaryIO, layout: Layout, expected: str, usual: Iterable[str]) -> Layout:
    """The layout with delimiter and header: the delimiter is the suffix's unless only another one gives a usual name."""
    lines = _header_lines(path, file, layout)
    end, text = next(lines, (layout.start, ""))
    if said := re.fullmatch(r"sep=(.)\r?\n?", text):  # Excel's word for it
        expected = said[1]
        end, text = next(lines, (end, ""))
    if "\0" in text:
        raise ValueError(f"{path}: is no text, or UTF-16 without its mark; save it as UTF-8")
    if "\r" in text.strip():
        raise ValueError(f"{path}: its lines end in carriage returns alone; save it with line feeds")
    headers = {}
    for delimiter in (expected, *(other for other in DELIMITERS if other != expected)):
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True), [])
        except csv.Error as error:
            if delimiter == expected:
                raise ValueError(f"{path}: header: {error}") from error
            continue
        headers[delimiter] = tuple(cell.strip() for cell in cells)
    names = {usual_name(name) for name in usual}
    chosen = next((delimiter for delimiter, header in headers.items() if names & {*map(usual_name, header)}), expected)
    if chosen != expected:
        logger.warning("%s: %s is between its cells, and so it is read", path, DELIMITERS[chosen])
    spaced = any(cell != cell.strip() for cell in text.strip().split(chosen))
    return layout._replace(start=end, delimiter=chosen, spaced=spaced, header=headers[chosen])


def _header_lines(path: str, file: BinaryIO, layout: Layout) -> Iterator[tuple[int, str]]:
    """The lines that are not blank; ValueError where one is too long."""
    for end, line in _json_lines(path, _lines(path, file, layout), layout.start):
        if isinstance(line, LongLine):
            raise ValueError(f"{path}: {line}")
        yield end, line


def usual_name(name: str) -> str:
    """A column's name as people mean it: `Image Path` is `image_path`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def tell_of_strange_lines(path: str, file: BinaryIO, found: Found) -> None:
    """A warning of lines that are no UTF-8."""
    if found.strange:
        file.seek(0)
        line = sum(
            block.count(b"\n")
            for block in iter(lambda: file.read(min(WINDOW, found.first_strange - file.tell())), b"")
        )
        logger.warning(
            "%s: line %s is no UTF-8%s; what cannot be read becomes \ufffd: save the file as UTF-8",
            path,
            f"{line:,}",
            f", nor are {found.strange - 1:,} more" if found.strange > 1 else "",
        )


def settle_quotes(path: str, file: BinaryIO, layout: Layout, found: Found) -> Layout:
    """The layout as a whole pass shows it: whether quotation marks hold cells together or stand for themselves.

    They stand for themselves where that reading fits the header better and few cells are held by them whole. Says what it found.
    """
    if not found.misread:
        return layout
    where = f"row {found.first_misread:,} begins a cell with a quotation mark that does not end it"
    if (
        found.odd_lines < found.misread + found.odd
        and found.whole <= found.misread
        and not _header_is_quoted(file, layout)
    ):
        logger.warning("%s: %s: all quotation marks are read as they stand", path, where)
        return layout._replace(quoted=False)
    logger.warning(
        "%s: %s; %s",
        path,
        where,
        "it is read as it stands" if found.misread == 1 else f"such rows, {found.misread:,}, are read as they stand",
    )
    return layout


def _header_is_quoted(file: BinaryIO, layout: Layout) -> bool:
    file.seek(0)
    return b'"' in file.read(layout.start)


# ---- records ---------------------------------------------------------------------------------------------------------


def records(
    path: str, file: BinaryIO, layout: Layout, found: Found | None = None, *, few: bool = False
) -> Iterator[tuple[int, Record]]:
    """Offset in bytes behind, and what is in, each record that is not blank, from where the file stands.

    found: counts what is strange. few: whether only one or a few are wanted.
    Raises ValueError, with the line, where an array cannot be read on.
    """
    if layout.array:
        return _array_records(path, file, layout, NEARBY if few else WINDOW)
    lines = _lines(path, file, layout, found)
    if layout.delimiter:
        return _cell_records(path, lines, file.tell(), layout, found or Found())
    return _json_lines(path, lines, file.tell())


def readable(line: bytes) -> str:
    """The line as text, with a mark for what is no UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace")


class LongLine(ValueError):
    """What is wrong with a line that is larger than limits.LINE."""


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


def _lines(
    path: str, file: BinaryIO, layout: Layout, found: Found | None = None
) -> Iterator[tuple[int, bytes | LongLine]]:
    """Offset behind each line, and the line in UTF-8, from where the file stands."""
    position = file.tell()
    if layout.encoding == "utf-8":
        for size, line in sized_lines(path, file):
            position += size
            if found and isinstance(line, bytes) and not line.isascii():
                found.look_at(line, position)
            yield position, line
        return
    text = io.TextIOWrapper(file, layout.encoding, newline="\n")
    try:
        for size, line in sized_lines(path, text, lambda line: len(line.encode(layout.encoding))):
            position += size
            yield position, line if isinstance(line, LongLine) else line.encode("utf-8", "replace")
    except UnicodeError as error:
        raise ValueError(f"{path}: no whole {layout.encoding[:6].upper()}: {error}") from error
    finally:
        if not file.closed:
            text.detach()


def _json_lines(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int
) -> Iterator[tuple[int, str | LongLine]]:
    """The lines that are not blank."""
    blank = 0  # lines, behind `start`
    for end, line in lines:
        if isinstance(line, bytes) and line.isspace():
            blank += 1
            _check_blank(path, blank, end - start)
            continue
        start, blank = end, 0
        yield end, readable(line) if isinstance(line, bytes) else line


def _check_blank(path: str, lines: int, size: int) -> None:
    """Raises ValueError where more blank lines stand between two rows than are passed over."""
    if lines > limits.BLANK_LINES or size > limits.BLANK:
        most = f"{limits.BLANK_LINES:,} lines or {limits.BLANK:,} bytes"
        raise ValueError(f"{path}: more than {most} between two rows are blank")


def _cell_records(
    path: str, lines: Iterator[tuple[int, bytes | LongLine]], start: int, layout: Layout, found: Found
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
            _check_blank(path, blank, taken[-1][0] - start)
            taken.clear()
            continue
        row, blank = row + 1, 0
        if isinstance(cells, LongLine) and len(taken) > 1:  # it stands where the end of an open cell was looked for
            returned.append(taken.pop())
            cells = ValueError("a quotation mark that opens a cell does not close it")
        if isinstance(cells, LongLine):
            pass
        elif layout.quoted and (b'"' in taken[0][1] or len(taken) > 1 or not isinstance(cells, list)):
            cells = _judged(cells, taken, returned, row, layout, found)
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
    found: Found,
) -> list[str] | ValueError:
    """The cells of a record with quotation marks, or of its first line alone, the others given back; what it shows is counted."""
    delimiter, width = layout.delimiter, len(layout.header)
    found.odd_lines += sum(line.count(delimiter.encode()) + 1 != width for _, line in taken)
    if isinstance(cells, list) and not _swallows(taken, layout):
        found.whole += taken[0][1].startswith(b'"') or f'{delimiter}"'.encode() in taken[0][1]
        found.odd += len(cells) != width
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
    found.misread += 1
    found.first_misread = found.first_misread or row
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


# ---- JSON values that are no lines -----------------------------------------------------------------------------------

_BETWEEN, _SPACE = re.compile(r"[\s,]*"), re.compile(r"\s*")


class _Window:
    """A piece of a file of JSON values at a time, of so many bytes at first.

    It is decoded as Latin-1, in which a byte is a character, so that `json` says where each value ends in bytes.
    """

    def __init__(self, path: str, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.decode = json.JSONDecoder().raw_decode
        self.text, self.at, self.position, self.line = "", 0, file.tell(), 1  # place of, and line at, the first byte

    def more(self) -> bool:
        """Reads on, and forgets what is passed; False at the end of the file."""
        block = self.file.read(max(self.size, len(self.text) - self.at))
        self.position, self.line = self.position + self.at, self.line + self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + block.decode("latin-1"), 0
        return bool(block)

    def mark(self, between: re.Pattern[str] = _SPACE) -> str:
        """The next character that is not between values; "" at the end of the file. Raises ValueError where blanks do not end."""
        start = self.position + self.at
        while True:
            if passed := between.match(self.text, self.at):
                self.at = passed.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""
            _check_blank(self.path, 0, self.position - start)

    def value(self) -> str | ValueError:
        """The text of the value that begins here, or what is wrong with it; raises ValueError, with the line, where none does."""
        while True:
            text, at = self.text, self.at
            try:
                if len(text) - at > limits.VALUES and sum(text.count(mark, at) for mark in ",[{") > limits.VALUES:
                    raise ValueError(f"JSON of more than {limits.VALUES:,} values")
                _, end = self.decode(text, at)
            except json.JSONDecodeError as error:
                here = self.line + error.lineno - 1
                if len(text) - at < limits.LINE and self.more():
                    continue
                raise ValueError(f"{self.path}: line {here:,}: not JSON: {error.msg}") from error
            except (RecursionError, ValueError) as error:  # a number of too many digits
                raise ValueError(f"{self.path}: line {self.here():,}: {error}") from error
            if end == len(text) and self.more():
                continue  # it may go on: a number, say
            self.at = end
            if end - at > limits.LINE:
                return ValueError(f"{end - at:,} bytes, more than {limits.LINE:,}")
            return readable(text[at:end].encode("latin-1"))

    def here(self) -> int:
        """The line that is read."""
        return self.line + self.text.count("\n", 0, self.at)


def _array_records(path: str, file: BinaryIO, layout: Layout, size: int) -> Iterator[tuple[int, str | ValueError]]:
    """The elements of arrays, or values, one after another."""
    window = _Window(path, file, size)
    opens, bracket = (
        window.position == layout.start,
        False,
    )  # whether a `[` here opens an array of rows, and one is open
    while mark := window.mark(_BETWEEN):
        if mark == "]" or mark == "[" and opens:
            opens, bracket, window.at = mark == "]", mark == "[", window.at + 1
            continue
        opens = False
        text = window.value()
        yield window.position + window.at, text
    if bracket:
        raise ValueError(f"{path}: is cut: the array has no end")


def object_pairs(path: str, file: BinaryIO) -> Iterator[tuple[str, str] | ValueError]:
    """The names and values of a JSON object, which may be larger than memory, as JSON texts, or what is wrong with a pair.

    Raises ValueError, with the line, where the object cannot be read on.
    """
    file.seek(read_layout(path, file, ".json", ()).start)
    window = _Window(path, file, WINDOW)

    def passed(marks: str) -> str:
        mark = window.mark()
        if not mark:
            raise ValueError(f"{path}: is cut: the object has no end")
        if mark not in marks:
            raise ValueError(f"{path}: line {window.here():,}: not JSON: expected {' or '.join(marks)}, got {mark}")
        window.at += 1
        return mark

    passed("{")
    while window.mark() != "}":
        name = window.value()
        passed(":")
        window.mark()
        value = window.value()
        if isinstance(name, ValueError):
            yield name
        elif isinstance(value, ValueError):
            yield value
        else:
            yield name, value
        if passed(",}") == "}":
            return
