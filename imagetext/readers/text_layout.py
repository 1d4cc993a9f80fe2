"""Find out, from the first bytes of a text table, its encoding, whether it is JSON, its delimiter and its header."""

import codecs
import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from imagetext.readers.text_lines import WINDOW, LongLine, lines_in_utf8, lines_with_text
from imagetext.stores import open_file

logger = logging.getLogger(__name__)

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # byte order marks, at the beginning of a file
DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}


class Layout(NamedTuple):
    """How a text table is written."""

    start: int  # bytes before its first record
    encoding: str = "utf-8"  # UTF-16 or UTF-32 if the file begins with such a mark
    array: bool = False  # whether it is JSON values in sequence or in an array, not one value on each line
    delimiter: str = ""  # of cells; "": JSON
    spaced: bool = False  # whether blanks around cells belong to the delimiter
    quoted: bool = True  # whether quotation marks enclose cells; otherwise they are ordinary characters
    header: tuple[str, ...] = ()  # the names of the cells
    optional: int = 0  # cells that may be left out at the end of a row: those after the last usual name


def read_layout(path: str, file: BinaryIO, kind: str, usual: Iterable[str]) -> Layout:
    """Return the layout of a JSON (`.json`, `.jsonl`) or separated (`.csv`, `.tsv`) table, from its first bytes.

    kind: the suffix.
    usual: names of columns by which the delimiter is recognised, and of those that a row must have.

    Raises ValueError if the file is not such a text.
    """
    head = file.read(4)
    mark, encoding = encoding_of(head)
    file.seek(len(mark))
    if kind in (".json", ".jsonl"):
        if kind == ".json":
            array = not are_json_lines(file)
        else:
            start = file.read(4096).decode(encoding, "replace").lstrip()
            # A line with only `{` begins an object that is printed over several lines.
            array = bool(re.match(r"\[\s*(\{|\]|$)|\{\s*\n", start))
        if array and encoding != "utf-8":
            raise ValueError(f"{path}: is {encoding[:6].upper()}; save it as UTF-8")
        return Layout(len(mark), encoding, array)
    expected = "\t" if kind == ".tsv" else ","
    return _with_header(path, file, Layout(len(mark), encoding), expected=expected, usual=usual)


def encoding_of(head: bytes) -> tuple[bytes, str]:
    """The byte order mark at the beginning of a file, and the encoding that it stands for; UTF-8 without a mark."""
    return next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", "utf-8"))


def first_character(path: str) -> str:
    """The first character of a text file that is not blank; "" if the first 4,096 bytes have none."""
    return _beginning(path).lstrip()[:1]


def possible_header(path: str) -> set[str]:
    """The parts of a text file's first line, between delimiters of any kind, as names of columns in our spelling."""
    parts = re.split(f"[{''.join(DELIMITERS)}]", _beginning(path).partition("\n")[0])
    return {usual_name(part.strip().strip('"')) for part in parts}


def _beginning(path: str) -> str:
    with open_file(path) as file:
        head = file.read(4096)
    mark, encoding = encoding_of(head)
    return head[len(mark) :].decode(encoding, "replace")


def are_json_lines(file: BinaryIO) -> bool:
    """Whether a file has one JSON object on each line, by its first two lines from the current position."""
    try:
        is_object = isinstance(json.loads(file.readline(WINDOW)), dict)
    except (ValueError, RecursionError):
        return False
    return is_object and file.read(WINDOW).lstrip()[:1] == b"{"


def _with_header(path: str, file: BinaryIO, layout: Layout, *, expected: str, usual: Iterable[str]) -> Layout:
    """Add delimiter and header to a layout.

    The delimiter is the expected one, unless the header has a usual name only with another one.
    """
    lines = _header_lines(path, file, layout)
    end, text = next(lines, (layout.start, ""))
    if separator := re.fullmatch(r"sep=(.)\r?\n?", text):  # Excel writes this line
        expected = separator[1]
        end, text = next(lines, (end, ""))
    if "\0" in text:
        raise ValueError(f"{path}: is not text, or is UTF-16 without its mark; save it as UTF-8")
    if "\r" in text.strip():
        raise ValueError(f"{path}: its lines end with carriage returns only; save it with line feeds")
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
        logger.warning("%s: its cells are separated by %s, and it is read so", path, DELIMITERS[chosen])
    spaced = any(cell != cell.strip() for cell in text.strip().split(chosen))
    header = headers[chosen]
    optional = next((index for index, name in enumerate(reversed(header)) if usual_name(name) in names), 0)
    return layout._replace(start=end, delimiter=chosen, spaced=spaced, header=header, optional=optional)


def _header_lines(path: str, file: BinaryIO, layout: Layout) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank. Raises ValueError if one is too long."""
    for end, line in lines_with_text(path, lines_in_utf8(path, file, layout.encoding), layout.start):
        if isinstance(line, LongLine):
            raise ValueError(f"{path}: {line}")
        yield end, line


def usual_name(name: str) -> str:
    """A column's name in our spelling: `Image Path` becomes `image_path`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
