"""How a text table is written: its encoding, JSON or separated cells, its delimiter and header, by its first bytes."""

import codecs
import csv
import logging
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from imagetext.readers.text_lines import LongLine, lines_in_utf8, lines_with_text

logger = logging.getLogger(__name__)

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # at the start of a file
DELIMITERS = {"\t": "a tab", ",": "a comma", ";": "a semicolon", "|": "a bar"}


class Layout(NamedTuple):
    """How a text table is written."""

    start: int  # bytes before its first record
    encoding: str = "utf-8"  # UTF-16 and UTF-32 where the file begins with their marks
    array: bool = False  # JSON values one after another or in an array, whatever the lines
    delimiter: str = ""  # "": JSON
    spaced: bool = False  # blanks around cells belong to the delimiter
    quoted: bool = True  # a cell that begins with a quotation mark ends with one; else marks stand for themselves
    header: tuple[str, ...] = ()  # of cells


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
    for end, line in lines_with_text(path, lines_in_utf8(path, file, layout.encoding), layout.start):
        if isinstance(line, LongLine):
            raise ValueError(f"{path}: {line}")
        yield end, line


def usual_name(name: str) -> str:
    """A column's name as people mean it: `Image Path` is `image_path`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
